// Jobs through the coordinator's real services over loopback, with a worker that only rounds.

#include <chrono>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "lib/format/artifact.h"
#include "lib/format/checkpoint.h"
#include "services/coordinator/assembly.h"
#include "services/rpc/file_stream.h"
#include "tests/services/coordinator_fixture.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;
using Jobs = v1::JobService::Stub;

class CoordinatorJobs : public CoordinatorFixture {
 protected:
  FakeWorker MakeWorker(const std::string& name = "w1",
                        v1::Worker::Kind kind = v1::Worker::COMPUTE) {
    FakeWorker worker(channel_, name, kind);
    EXPECT_TRUE(worker.Register().ok());
    return worker;
  }
  // The bytes of a shard from `offset`; DATA_LOSS when a piece contradicts its checksum.
  absl::StatusOr<std::string> ReadShard(FakeWorker& worker, const std::string& session,
                                        const std::string& job, const std::string& sha256,
                                        int64_t offset) {
    v1::ReadShardRequest request;
    request.set_session(session);
    request.set_job(job);
    request.set_sha256(sha256);
    request.set_offset(offset);
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(10));
    const auto reader = worker.stub().ReadShard(&context, request);
    std::string bytes;
    v1::FileChunk chunk;
    while (reader->Read(&chunk)) {
      EXPECT_LE(chunk.data().size(), 1u << 20);
      EXPECT_EQ(chunk.offset(), offset + static_cast<int64_t>(bytes.size()));
      if (chunk.xxh3() != Xxh3(chunk.data())) return absl::DataLossError("checksum");
      bytes += chunk.data();
    }
    const absl::Status status = FromGrpc(reader->Finish());
    if (!status.ok()) return status;
    return bytes;
  }
  absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenArtifact(const std::string& job) {
    const auto fetch = [this, job](const std::string& file, int64_t offset, int64_t length,
                                   absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
      v1::DownloadArtifactRequest request;
      request.set_name(job);
      request.set_file(file);
      request.set_offset(offset);
      grpc::ClientContext context;
      SetDeadline(context, absl::Seconds(30));
      const auto reader = jobs_->DownloadArtifact(&context, request);
      v1::FileChunk chunk;
      int64_t left = file.empty() ? 1 : length;
      while (left > 0 && reader->Read(&chunk)) {
        const auto bytes = static_cast<int64_t>(chunk.data().size());
        if (!file.empty() && bytes > left) {
          chunk.mutable_data()->resize(static_cast<size_t>(left));
          chunk.set_xxh3(Xxh3(chunk.data()));
        }
        if (absl::Status status = receive(chunk); !status.ok()) return status;
        left -= bytes;
      }
      if (left > 0 || file.empty()) return FromGrpc(reader->Finish());
      context.TryCancel();
      reader->Finish();
      return absl::OkStatus();
    };
    return OpenRemoteFolder("download:" + job, fetch);
  }
};

TEST_F(CoordinatorJobs, AJobReachesItsArtifact) {
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->state(), v1::Job::QUEUED);
  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  const auto job = WaitForEnd(created->name());
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->state(), v1::Job::SUCCEEDED) << job->message();
  EXPECT_EQ(job->validation().state(), v1::Validation::NOT_REQUESTED);
  EXPECT_EQ(job->artifact_path(), Output());
  EXPECT_EQ(job->artifact_digest(), *FolderDigest(Output()));
  EXPECT_EQ(job->progress().linears_done(), 21);
  EXPECT_NEAR(job->progress().predicted_loss_increase(), 0.021, 1e-12);

  auto folder = OpenLocalFolder(Output());
  const auto artifact = Artifact::Open(*std::move(folder));
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ((*artifact)->linears().size(), 21u);
  const auto linear = (*artifact)->ReadLinear("model.layers.2.mlp.down_proj");
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->bits, 3);
  const auto gradq = nlohmann::json::parse((*artifact)->gradq_json());
  EXPECT_EQ(gradq["recipe"]["method"], "lnq");
  EXPECT_EQ(gradq["recipe"]["options"]["cycles"], "4");
  EXPECT_EQ(gradq["recipe"]["calibration_sha256"], Sha256Hex(FixtureText("calibration.txt")));

  ASSERT_TRUE(PathExists(Output() + "/report.json")) << "before the end is told";
  const auto report = nlohmann::json::parse(*ReadFile(Output() + "/report.json"));
  EXPECT_EQ(report["job"], job->name());
  EXPECT_EQ(report["artifact_digest"], job->artifact_digest());
  EXPECT_EQ(report["workers"][0]["name"], "workers/w1");
  EXPECT_EQ(report["workers"][0]["device"], "cpu");
  EXPECT_EQ(*FolderDigest(Output()), job->artifact_digest()) << "the report is not part of it";

  const auto remote = OpenArtifact(job->name());
  ASSERT_TRUE(remote.ok()) << remote.status();
  const auto entries = (*remote)->List();
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_GE(entries->size(), 4u);
  for (const FolderEntry& entry : *entries) {
    EXPECT_EQ(*(*remote)->ReadAll(entry.name, 1 << 24), *ReadFile(Output() + "/" + entry.name));
  }
  for (const auto& entry : std::filesystem::directory_iterator(output_root_)) {
    EXPECT_EQ(entry.path().string(), Output()) << "nothing else is left beside the artifact";
  }
}

TEST_F(CoordinatorJobs, AJobWithoutOutputIsDownloaded) {
  const auto created = Create(Spec(""));
  ASSERT_TRUE(created.ok()) << created.status();
  const auto early = OpenArtifact(created->name());
  EXPECT_TRUE(absl::IsFailedPrecondition(early.status())) << early.status();
  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  ASSERT_EQ(WaitForEnd(created->name())->state(), v1::Job::SUCCEEDED);
  auto remote = OpenArtifact(created->name());
  ASSERT_TRUE(remote.ok()) << remote.status();
  EXPECT_TRUE(Artifact::Open(*std::move(remote)).ok());
}

TEST_F(CoordinatorJobs, ForceReplacesWhatStands) {
  ASSERT_TRUE(MakeFolders(Output()).ok());
  ASSERT_TRUE(WriteFileAtomically(Output() + "/old", "content").ok());
  v1::JobSpec spec = Spec();
  spec.set_force(true);
  const auto created = Create(spec);
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_TRUE(PathExists(Output() + "/old")) << "kept until the rename";
  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  ASSERT_EQ(WaitForEnd(created->name())->state(), v1::Job::SUCCEEDED);
  EXPECT_FALSE(PathExists(Output() + "/old"));
  EXPECT_TRUE(Artifact::Open(*OpenLocalFolder(Output())).ok());
}

TEST_F(CoordinatorJobs, ValidationRunsOnAnInferenceWorker) {
  v1::JobSpec spec = Spec();
  spec.set_evaluation_blob(MustUpload(FixtureText("validation.txt")));
  spec.set_evaluation_sequences(3);
  const auto created = Create(spec);
  ASSERT_TRUE(created.ok()) << created.status();
  FakeWorker worker = MakeWorker();
  FakeWorker inference = MakeWorker("i1", v1::Worker::INFERENCE);
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  const auto lease = inference.Lease(absl::Seconds(10));
  ASSERT_TRUE(lease.ok() && lease->has_value()) << lease.status();
  ASSERT_TRUE((*lease)->spec().has_validate());
  EXPECT_EQ((*lease)->job().evaluation_sequences(), 3);
  const auto model = inference.OpenModel(created->name());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->ReadAll((*lease)->job().evaluation_tokens(), 1 << 20)->size(), 3u * 64 * 4);
  // The report is held up: the end must not be told before it stands.
  std::promise<void> gate;
  const std::shared_future<void> opened = gate.get_future().share();
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(coordinator_->io().Post([opened] { opened.wait(); }));
  }
  ASSERT_TRUE(inference.Work(**lease).ok());
  EXPECT_EQ(Get(created->name())->state(), v1::Job::SUCCEEDED);
  auto watched = std::async(std::launch::async, [&] { return WaitForEnd(created->name()); });
  EXPECT_EQ(watched.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  gate.set_value();
  const auto job = watched.get();
  EXPECT_EQ(job->state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(job->validation().state(), v1::Validation::DONE);
  EXPECT_EQ(job->validation().comparison().perplexity(), 30.0);
  ASSERT_TRUE(PathExists(Output() + "/report.json")) << "before the end is told";
  const auto report = nlohmann::json::parse(*ReadFile(Output() + "/report.json"));
  EXPECT_EQ(report["validation"]["perplexity"], 30.0);
}

TEST_F(CoordinatorJobs, WorkersReadTheModelOverTheWire) {
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  FakeWorker worker = MakeWorker();
  const auto lease = worker.Lease(absl::Seconds(10));
  ASSERT_TRUE(lease.ok() && lease->has_value()) << lease.status();
  const v1::JobContext& context = (*lease)->job();
  EXPECT_EQ(context.model_path(), std::filesystem::canonical(model_root_ + "/tiny-llama"));
  auto model = worker.OpenModel(created->name());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokens = (*model)->ReadAll(context.calibration_tokens(), 1 << 20);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->size(), 4u * 64 * 4);
  const auto checkpoint = Checkpoint::Open(*std::move(model));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->layout_digest(), context.model_digest());

  const auto read = [&](const std::string& session, const std::string& job, const std::string& file,
                        int64_t offset) {
    v1::ReadModelRequest request;
    request.set_session(session);
    request.set_job(job);
    request.set_file(file);
    request.set_offset(offset);
    grpc::ClientContext client;
    SetDeadline(client, absl::Seconds(10));
    const auto reader = worker.stub().ReadModel(&client, request);
    v1::FileChunk chunk;
    while (reader->Read(&chunk)) {
    }
    return FromGrpc(reader->Finish());
  };
  const std::string& session = worker.session();
  EXPECT_TRUE(read(session, created->name(), "config.json", 0).ok());
  EXPECT_TRUE(
      absl::IsInvalidArgument(read(session, created->name(), "../docs-llama-6m/config.json", 0)));
  EXPECT_TRUE(absl::IsInvalidArgument(read(session, created->name(), "..", 0)));
  EXPECT_TRUE(absl::IsNotFound(read(session, created->name(), "absent", 0)));
  EXPECT_TRUE(absl::IsNotFound(read("stranger", created->name(), "config.json", 0)));
  EXPECT_TRUE(absl::IsNotFound(read(session, "jobs/999999", "config.json", 0)));
  EXPECT_TRUE(absl::IsOutOfRange(read(session, created->name(), "config.json", 1 << 20)));
}

TEST_F(CoordinatorJobs, ShardsAreCheckedAndFenced) {
  v1::JobSpec spec = Spec();
  spec.mutable_recipe()->set_method("rtn");
  const auto created = Create(spec);
  ASSERT_TRUE(created.ok()) << created.status();
  FakeWorker worker = MakeWorker();
  std::optional<v1::Lease> lease;
  while (!lease.has_value() || !lease->spec().has_solve_linear()) {
    if (lease.has_value()) {
      ASSERT_TRUE(worker.Work(*lease).ok());
    }
    lease = *worker.Lease(absl::Seconds(10));
    ASSERT_TRUE(lease.has_value());
  }
  const std::string bytes(10'000, 'x');
  EXPECT_TRUE(absl::IsDataLoss(worker.WriteShard(*lease, bytes, Sha256Hex("other"))));
  EXPECT_TRUE(absl::IsInvalidArgument(worker.WriteShard(*lease, bytes, "../../escape")));
  v1::Lease fenced = *lease;
  fenced.set_attempt(lease->attempt() + 1);
  EXPECT_TRUE(absl::IsAborted(worker.WriteShard(fenced, bytes, Sha256Hex(bytes))));
  fenced.set_task("jobs/../../x/tasks/y");
  EXPECT_FALSE(worker.WriteShard(fenced, bytes, Sha256Hex(bytes)).ok());
  EXPECT_TRUE(worker.WriteShard(*lease, bytes, Sha256Hex(bytes)).ok());
  EXPECT_TRUE(worker.WriteShard(*lease, bytes, Sha256Hex(bytes)).ok()) << "again: answered early";

  const auto whole = ReadShard(worker, worker.session(), created->name(), Sha256Hex(bytes), 0);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(*whole, bytes);

  // A second session of the same name fences the first.
  FakeWorker again(channel_, "w1");
  ASSERT_TRUE(again.Register().ok());
  const absl::Status late = worker.WriteShard(*lease, "late", Sha256Hex("late"));
  EXPECT_TRUE(absl::IsAborted(late) || absl::IsNotFound(late)) << late;
}

TEST_F(CoordinatorJobs, ShardsAreReadInCheckedPieces) {
  v1::JobSpec spec = Spec();
  spec.mutable_recipe()->set_method("rtn");
  const auto created = Create(spec);
  const auto other = Create(Spec("other"));
  ASSERT_TRUE(created.ok() && other.ok());
  FakeWorker worker = MakeWorker();
  const auto lease = worker.Lease(absl::Seconds(10));
  ASSERT_TRUE(lease.ok() && lease->has_value() && (*lease)->spec().has_solve_linear());
  std::string bytes(2'500'000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7919 >> 3);
  const std::string sha256 = Sha256Hex(bytes);
  ASSERT_TRUE(worker.WriteShard(**lease, bytes, sha256).ok());

  const std::string& session = worker.session();
  const std::string& job = created->name();
  EXPECT_EQ(*ReadShard(worker, session, job, sha256, 0), bytes);
  EXPECT_EQ(*ReadShard(worker, session, job, sha256, 2'499'990), bytes.substr(2'499'990));
  EXPECT_TRUE(absl::IsOutOfRange(ReadShard(worker, session, job, sha256, 2'500'001).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadShard(worker, session, job, Sha256Hex("x"), 0).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadShard(worker, "stranger", job, sha256, 0).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadShard(worker, session, other->name(), sha256, 0).status()))
      << "a shard of another job";
  EXPECT_TRUE(
      absl::IsInvalidArgument(ReadShard(worker, session, job, "../jobs.sqlite", 0).status()));
}

TEST_F(CoordinatorJobs, CancelStopsEverything) {
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  FakeWorker worker = MakeWorker();
  const auto lease = worker.Lease(absl::Seconds(10));
  ASSERT_TRUE(lease.ok() && lease->has_value());
  ASSERT_TRUE(Cancel(created->name()).ok());
  const auto heartbeat = worker.Heartbeat(&**lease);
  ASSERT_TRUE(heartbeat.ok());
  ASSERT_EQ(heartbeat->revoked_size(), 1);
  EXPECT_EQ(heartbeat->revoked(0).task(), (*lease)->task());
  worker.Finish(**lease, {}, v1::FinishTaskRequest::STOPPED).IgnoreError();
  EXPECT_EQ(WaitForEnd(created->name())->state(), v1::Job::CANCELLED);
  EXPECT_EQ(Cancel(created->name())->state(), v1::Job::CANCELLED) << "idempotent";
  EXPECT_FALSE((*worker.Lease(absl::Milliseconds(50))).has_value());
  EXPECT_FALSE(PathExists(Output()));
  EXPECT_TRUE(absl::IsNotFound(Cancel("jobs/999999").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Cancel("no job name").status()));
}

TEST_F(CoordinatorJobs, ARequestIdMakesOneJob) {
  const std::string id = "0b4b1a6e-2a8f-4d3a-9a53-3f7d5a1b2c3d";
  const v1::JobSpec spec = Spec();
  const auto first = Create(spec, id);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Create(spec, id)->name(), first->name());
  v1::JobSpec other = spec;
  other.mutable_recipe()->set_bits(4);
  EXPECT_TRUE(absl::IsAlreadyExists(Create(other, id).status()));
  EXPECT_EQ(CountJobs(), 1u);

  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  ASSERT_EQ(WaitForEnd(first->name())->state(), v1::Job::SUCCEEDED);
  // The output stands now; the resent request still gets its own job.
  const auto resent = Create(spec, id);
  ASSERT_TRUE(resent.ok()) << resent.status();
  EXPECT_EQ(resent->name(), first->name());
  EXPECT_TRUE(absl::IsAlreadyExists(Create(spec).status()));
}

TEST_F(CoordinatorJobs, JobsAreListedByPages) {
  std::set<std::string> made;
  for (int i = 0; i < 5; ++i) made.insert(Create(Spec("a" + std::to_string(i)))->name());
  std::set<std::string> listed;
  v1::ListJobsRequest request;
  request.set_page_size(2);
  int pages = 0;
  do {
    const auto page = Call(&Jobs::ListJobs, request);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(page->jobs_size(), 2);
    for (const v1::Job& job : page->jobs()) listed.insert(job.name());
    request.set_page_token(page->next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, made);
  EXPECT_EQ(pages, 3);
  request.set_page_token("foreign");
  EXPECT_TRUE(absl::IsInvalidArgument(Call(&Jobs::ListJobs, request).status()));
  request.Clear();
  request.set_page_size(-1);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(&Jobs::ListJobs, request).status()));
}

TEST_F(CoordinatorJobs, WatchResumesAfterARevision) {
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  const auto watch = [&](int64_t after, grpc::ClientContext* context) {
    v1::WatchJobRequest request;
    request.set_name(created->name());
    request.set_after_revision(after);
    SetDeadline(*context, absl::Seconds(20));
    return jobs_->WatchJob(context, request);
  };
  v1::Job job;
  {
    grpc::ClientContext context;
    const auto reader = watch(0, &context);
    ASSERT_TRUE(reader->Read(&job));
    EXPECT_EQ(job.revision(), Get(created->name())->revision());
    context.TryCancel();
    EXPECT_FALSE(reader->Read(&job));
  }
  grpc::ClientContext context;
  const int64_t seen = Get(created->name())->revision();
  const auto reader = watch(seen, &context);
  std::thread change([&] {
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_TRUE(Cancel(created->name()).ok());
  });
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_GT(job.revision(), seen);
  while (reader->Read(&job)) {
  }
  change.join();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(job.state(), v1::Job::CANCELLED);

  grpc::ClientContext unknown;
  v1::WatchJobRequest request;
  request.set_name("jobs/999999");
  EXPECT_TRUE(absl::IsNotFound(FromGrpc(jobs_->WatchJob(&unknown, request)->Finish())));
}

TEST_F(CoordinatorJobs, ALongPollWakesWhenThereIsWork) {
  FakeWorker worker = MakeWorker();
  const v1::JobSpec spec = Spec();
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_TRUE(Create(spec).ok());
  });
  const absl::Time start = absl::Now();
  const auto lease = worker.Lease(absl::Seconds(15));
  later.join();
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(lease->has_value());
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  FakeWorker stranger(channel_, "x");
  EXPECT_TRUE(absl::IsNotFound(stranger.Lease(absl::Seconds(1)).status()));
}

TEST_F(CoordinatorJobs, ShutdownEndsLongPolls) {
  FakeWorker worker = MakeWorker();
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(100));
    coordinator_->BeginShutdown();
  });
  EXPECT_TRUE(absl::IsUnavailable(worker.Lease(absl::Seconds(15)).status()));
  later.join();
}

TEST_F(CoordinatorJobs, ARestartLosesNothing) {
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  {
    FakeWorker worker = MakeWorker();
    for (int i = 0; i < 6; ++i) {
      const auto lease = worker.Lease(absl::Seconds(5));
      ASSERT_TRUE(lease.ok() && lease->has_value());
      ASSERT_TRUE(worker.Work(**lease).ok());
    }
  }
  StopServer();
  StartServer();
  EXPECT_EQ(Get(created->name())->state(), v1::Job::RUNNING);
  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(500)).ok());
  const auto job = WaitForEnd(created->name());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::Job::SUCCEEDED) << job->message();
  EXPECT_TRUE(Artifact::Open(*OpenLocalFolder(Output())).ok());
}

// The coordinator dies between the rename of the artifact and the record of it.
TEST_F(CoordinatorJobs, AnArtifactThatStandsIsRecognised) {
  namespace fs = std::filesystem;
  const std::string data = temporary_ / "data";
  const auto created = Create(Spec());
  ASSERT_TRUE(created.ok()) << created.status();
  {
    FakeWorker worker = MakeWorker();
    for (int i = 0; i < 10; ++i) {
      const auto lease = worker.Lease(absl::Seconds(5));
      ASSERT_TRUE(lease.ok() && lease->has_value());
      ASSERT_TRUE(worker.Work(**lease).ok());
    }
  }
  StopServer();
  fs::copy(data, temporary_ / "before", fs::copy_options::recursive);
  StartServer();
  const auto finish = [&] {
    FakeWorker worker = MakeWorker();
    EXPECT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(500)).ok());
    return *WaitForEnd(created->name());
  };
  const v1::Job first = finish();
  ASSERT_EQ(first.state(), v1::Job::SUCCEEDED) << first.message();

  // The state before, the artifact after, and the note that connects them.
  StopServer();
  const std::string note = "/jobs/1/publication.json";
  const std::string text = *ReadFile(data + note);
  fs::remove_all(data);
  fs::copy(temporary_ / "before", data, fs::copy_options::recursive);
  ASSERT_TRUE(WriteFileAtomically(data + note, text).ok());
  StartServer();
  const v1::Job second = finish();
  EXPECT_EQ(second.state(), v1::Job::SUCCEEDED) << second.message();
  EXPECT_EQ(second.artifact_digest(), first.artifact_digest());

  // Without the note it is someone else's folder, and is kept.
  StopServer();
  fs::remove_all(data);
  fs::copy(temporary_ / "before", data, fs::copy_options::recursive);
  StartServer();
  const v1::Job third = finish();
  EXPECT_EQ(third.state(), v1::Job::FAILED);
  EXPECT_EQ(third.code(), static_cast<int>(absl::StatusCode::kAlreadyExists)) << third.message();
  EXPECT_EQ(*FolderDigest(Output()), first.artifact_digest());
}

TEST_F(CoordinatorJobs, EventsAndTasksAreListed) {
  const auto created = Create(Spec());
  FakeWorker worker = MakeWorker();
  ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(300)).ok());
  ASSERT_TRUE(WaitForEnd(created->name()).ok());
  v1::ListEventsRequest events;
  events.set_parent(created->name());
  const auto listed = Call(&Jobs::ListEvents, events);
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_GT(listed->events_size(), 20);
  EXPECT_EQ(listed->events(0).type(), "job.created");
  v1::ListTasksRequest tasks;
  tasks.set_parent(created->name());
  const auto all = Call(&Jobs::ListTasks, tasks);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_GE(all->tasks_size(), 23);
  for (const v1::Task& task : all->tasks()) {
    EXPECT_EQ(task.state(), v1::Task::SUCCEEDED) << task.name();
  }
  EXPECT_EQ(Call(&Jobs::ListWorkers, v1::ListWorkersRequest())->workers(0).name(), "workers/w1");
  const auto capabilities = Call(&Jobs::GetCapabilities, v1::GetCapabilitiesRequest());
  EXPECT_GE(capabilities->quantizers_size(), 3);
  EXPECT_GE(capabilities->families_size(), 4);
  EXPECT_GE(capabilities->outlier_policies_size(), 4);
  EXPECT_EQ(capabilities->export_formats_size(), 3);
  EXPECT_EQ(capabilities->objectives_size(), 3);
}

}  // namespace
}  // namespace gradq
