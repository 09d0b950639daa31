#include "services/coordinator/coordinator.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/job_state.h"
#include "services/coordinator/job_names.h"
#include "services/coordinator/pages.h"

namespace gradq {
namespace {

// Behind the read tokens of jobs; a new one at each start, since workers then get new tokens too.
absl::StatusOr<std::string> DrawSecret() {
  std::string secret(32, '\0');
  if (getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size())) {
    return ErrnoToStatus(errno, "cannot draw random bytes", "getrandom");
  }
  return secret;
}

constexpr int kControlThreads = 2;
constexpr int kIoThreads = 8;
constexpr int kAdmissionThreads = 2;
constexpr size_t kMaxQueuedCalls = 4096;
constexpr size_t kMaxQueuedAdmissions = 64;
constexpr absl::Duration kLongestTick = absl::Seconds(1);
// Uploaded texts and token files that no unfinished job names are kept for so long.
constexpr absl::Duration kBlobAge = absl::Hours(24);
constexpr absl::Duration kBlobCheckInterval = absl::Hours(1);

}  // namespace

struct Coordinator::Parts {
  CoordinatorOptions options;
  FolderLock lock;
  BlobStore blobs;
  PathRoot model_root;
  PathRoot output_root;
  std::unique_ptr<JobStore> store;
  std::unique_ptr<CoordinatorCore> core;
};

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options,
                                                                const Clock& clock) {
  if (options.data_dir.empty()) return absl::InvalidArgumentError("data folder is not named");
  GRADQ_RETURN_IF_ERROR(MakeFolders(options.data_dir));
  std::error_code error;
  const std::string data_dir = std::filesystem::canonical(options.data_dir, error).string();
  if (error) return ErrnoToStatus(error.value(), "cannot open", options.data_dir);
  options.data_dir = data_dir;
  GRADQ_ASSIGN_OR_RETURN(PathRoot model_root, PathRoot::Open("--model-root", options.model_root));
  GRADQ_ASSIGN_OR_RETURN(PathRoot output_root,
                         PathRoot::Open("--output-root", options.output_root));
  GRADQ_ASSIGN_OR_RETURN(FolderLock lock, FolderLock::Take(data_dir));
  GRADQ_ASSIGN_OR_RETURN(BlobStore blobs, BlobStore::Open(data_dir + "/blobs"));
  GRADQ_RETURN_IF_ERROR(MakeFolders(data_dir + "/jobs"));
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store,
                         OpenSqliteStore(data_dir + "/jobs.sqlite"));
  GRADQ_ASSIGN_OR_RETURN(options.core.secret, DrawSecret());
  GRADQ_ASSIGN_OR_RETURN(
      std::unique_ptr<CoordinatorCore> core,
      CoordinatorCore::Open(store.get(), options.core, Now{clock.Monotonic(), clock.Wall()}));
  std::unique_ptr<Coordinator> coordinator(new Coordinator(
      Parts{std::move(options), std::move(lock), std::move(blobs), std::move(model_root),
            std::move(output_root), std::move(store), std::move(core)},
      clock));
  coordinator->Begin();
  return coordinator;
}

Coordinator::Coordinator(Parts parts, const Clock& clock)
    : options_(std::move(parts.options)),
      clock_(clock),
      lock_(std::move(parts.lock)),
      blobs_(std::move(parts.blobs)),
      admission_(std::move(parts.model_root), std::move(parts.output_root), options_.data_dir,
                 &blobs_),
      store_(std::move(parts.store)),
      core_(std::move(parts.core)),
      host_(HostForAssembler()),
      notifier_(clock),
      control_(kControlThreads, kMaxQueuedCalls),
      io_(kIoThreads, kMaxQueuedCalls),
      slow_(kAdmissionThreads, kMaxQueuedAdmissions) {}

void Coordinator::Begin() {
  assembler_ = std::make_unique<Assembler>(&host_);
  ticks_ = std::thread([this] { RunTicks(); });
  const auto list = [&](const v1::ListJobsRequest& request) {
    return WithCore([&](CoordinatorCore& core, Now) { return core.ListJobs(request); });
  };
  const auto take = [&](const v1::ListJobsResponse& response) {
    for (const v1::Job& job : response.jobs()) {
      const std::string& folder = job.artifact_path();
      const bool unreported =
          !folder.empty() && PathExists(folder) && !PathExists(folder + "/report.json");
      const std::lock_guard lock(unreported_mutex_);
      if (unreported) unreported_[job.name()] = false;
    }
  };
  const absl::Status status = ForEachPage<v1::ListJobsResponse>(v1::ListJobsRequest(), list, take);
  if (!status.ok()) LogWarning("cannot list the stored jobs: ", status.message());
  notifier_.Add([this](bool stopping) -> std::optional<absl::Duration> {
    if (stopping) return std::nullopt;
    ReportEndedJobs();
    return absl::InfiniteDuration();
  });
  notifier_.Add(
      [this, next = clock_.Monotonic()](bool stopping) mutable -> std::optional<absl::Duration> {
        if (stopping) return std::nullopt;
        if (clock_.Monotonic() >= next && slow_.Post([this] { RemoveUnusedBlobs(); })) {
          next = clock_.Monotonic() + kBlobCheckInterval;
        }
        return std::max(next, clock_.Monotonic() + absl::Seconds(1));
      });
}

Coordinator::~Coordinator() {
  BeginShutdown();
  {
    const std::lock_guard lock(tick_mutex_);
    tick_due_ = true;
  }
  tick_wake_.notify_all();
  if (ticks_.joinable()) ticks_.join();
  assembler_.reset();
  // What has ended meanwhile still gets its report; the executor finishes it.
  ReportEndedJobs();
}

void Coordinator::BeginShutdown() {
  stopping_ = true;
  notifier_.Stop();
}

AssemblyHost Coordinator::HostForAssembler() {
  AssemblyHost host;
  host.record = [this](const std::string& job) {
    return WithCore([&](CoordinatorCore& core, Now) { return core.Record(job); });
  };
  host.shards = [this](const std::string& job) {
    return WithCore([&](CoordinatorCore& core, Now) { return core.Shards(job); });
  };
  host.tasks = [this](const std::string& job) -> absl::StatusOr<std::vector<v1::Task>> {
    std::vector<v1::Task> tasks;
    v1::ListTasksRequest request;
    request.set_parent(job);
    GRADQ_RETURN_IF_ERROR((ForEachPage<v1::ListTasksResponse>(
        request,
        [&](const v1::ListTasksRequest& page) {
          return WithCore([&](CoordinatorCore& core, Now) { return core.ListTasks(page); });
        },
        [&](const v1::ListTasksResponse& page) {
          tasks.insert(tasks.end(), page.tasks().begin(), page.tasks().end());
        })));
    return tasks;
  };
  host.workers = [this]() -> absl::StatusOr<std::vector<v1::Worker>> {
    std::vector<v1::Worker> workers;
    GRADQ_RETURN_IF_ERROR((ForEachPage<v1::ListWorkersResponse>(
        v1::ListWorkersRequest(),
        [&](const v1::ListWorkersRequest& page) {
          return WithCore([&](CoordinatorCore& core, Now) { return core.ListWorkers(page); });
        },
        [&](const v1::ListWorkersResponse& page) {
          workers.insert(workers.end(), page.workers().begin(), page.workers().end());
        })));
    return workers;
  };
  host.shard_store = [this](const std::string& job) -> absl::StatusOr<BlobStore> {
    GRADQ_ASSIGN_OR_RETURN(const v1::JobRecord record,
                           WithCore([&](CoordinatorCore& core, Now) { return core.Record(job); }));
    const std::string& source = record.job().spec().source_job();
    return ShardsOf(source.empty() ? job : source);
  };
  host.begin_rename = [this](const std::string& job) {
    return WithCore([&](CoordinatorCore& core, Now now) { return core.BeginRename(now, job); });
  };
  host.finish = [this](const std::string& job, const absl::StatusOr<AssembleResult>& result) {
    {
      const std::lock_guard lock(unreported_mutex_);
      if (result.ok()) unreported_[job] = false;
    }
    return WithCore(
        [&](CoordinatorCore& core, Now now) { return core.FinishAssemble(now, job, result); });
  };
  host.output_path = [this](const v1::JobRecord& record) -> absl::StatusOr<std::string> {
    const std::string& output = record.job().spec().output();
    if (output.empty()) {
      GRADQ_ASSIGN_OR_RETURN(const std::string folder, JobFolder(record.job().name()));
      return folder + "/artifact";
    }
    GRADQ_RETURN_IF_ERROR(admission_.RecheckOutput(output));
    return output;
  };
  host.note_path = [this](const std::string& job) {
    const auto folder = JobFolder(job);
    GRADQ_CHECK(folder.ok());  // the core made the name
    MakeFolders(*folder).IgnoreError();
    return *folder + "/publication.json";
  };
  return host;
}

void Coordinator::RemoveUnusedBlobs() {
  // A job that is being created has just used its blobs, so that their age spares them.
  std::set<std::string, std::less<>> keep;
  const auto take = [&](const v1::ListJobsResponse& page) {
    for (const v1::Job& job : page.jobs()) {
      // Other points of a job whose shards are kept are measured on its evaluation text.
      if (IsTerminal(job.state()) && !job.has_shards_expire_time()) continue;
      keep.insert({job.spec().calibration_blob(), job.spec().evaluation_blob()});
      const auto record =
          WithCore([&](CoordinatorCore& core, Now) { return core.Record(job.name()); });
      GRADQ_CHECK(record.ok());  // the core has just listed it
      for (const std::string& file : {record->calibration_tokens(), record->evaluation_tokens()}) {
        keep.emplace(TokenFileDigest(file));
      }
    }
  };
  const auto list = [&](const v1::ListJobsRequest& request) {
    return WithCore([&](CoordinatorCore& core, Now) { return core.ListJobs(request); });
  };
  absl::Status status = ForEachPage<v1::ListJobsResponse>(v1::ListJobsRequest(), list, take);
  if (status.ok()) status = blobs_.RemoveUnused(keep, kBlobAge);
  if (!status.ok()) LogWarning("cannot remove unused blobs: ", status.message());
}

void Coordinator::ReportEndedJobs() {
  std::vector<std::string> waiting;
  {
    const std::lock_guard lock(unreported_mutex_);
    for (const auto& [name, queued] : unreported_) {
      if (!queued) waiting.push_back(name);
    }
  }
  for (const std::string& name : waiting) {
    const auto job = WithCore([&](CoordinatorCore& core, Now) { return core.GetJob(name); });
    if (job.ok() && !IsTerminal(job->state())) continue;
    {
      const std::lock_guard lock(unreported_mutex_);
      unreported_[name] = true;
    }
    const auto report = [this, name] {
      const absl::Status status = WriteReport(host_, name);
      if (!status.ok()) LogWarning("cannot write the report of ", name, ": ", status.message());
      {
        const std::lock_guard lock(unreported_mutex_);
        unreported_.erase(name);
      }
      notifier_.Poke();
    };
    if (!io_.Post(report)) report();
  }
}

bool Coordinator::ReportPending(const std::string& job) {
  const std::lock_guard lock(unreported_mutex_);
  return unreported_.contains(job);
}

void Coordinator::Perform(const std::vector<Action>& actions) {
  for (const Action& action : actions) {
    if (const auto* assemble = std::get_if<StartAssemble>(&action)) {
      if (assembler_ != nullptr) assembler_->Enqueue(assemble->job);
    } else if (const auto* remove = std::get_if<RemoveJobData>(&action)) {
      const auto folder = JobFolder(remove->job);
      if (!folder.ok()) continue;
      const std::string shards = *folder + "/shards";
      const bool posted = io_.Post([path = remove->shards_only ? shards : *folder] {
        const absl::Status status = RemoveRecursively(path);
        if (!status.ok()) LogWarning(status.message());
      });
      if (!posted) LogWarning("too busy to remove the data of ", remove->job);
    }
  }
}

void Coordinator::RunTicks() {
  bool storing = true;
  while (!stopping_) {
    {
      // Changes from here on are seen by this tick or cause the next one; its own do not.
      const std::lock_guard lock(tick_mutex_);
      tick_due_ = false;
    }
    absl::Duration deadline;
    const absl::Status status = WithCore(
        [&](CoordinatorCore& core, Now now) {
          absl::Status ticked = core.Tick(now);
          deadline = core.NextDeadline();
          return ticked;
        },
        /*wakes_ticks=*/false);
    if (!status.ok() && storing) {
      LogWarning("state not stored, tried again every second: ", status.message());
    } else if (status.ok() && !storing) {
      LogInfo("state is stored again");
    }
    storing = status.ok();
    const absl::Duration pause =
        storing ? std::clamp(deadline - clock_.Monotonic(), absl::Milliseconds(1), kLongestTick)
                : kLongestTick;
    std::unique_lock lock(tick_mutex_);
    tick_wake_.wait_for(lock, absl::ToChronoMicroseconds(pause),
                        [&] { return (tick_due_ && storing) || stopping_; });
  }
}

Fleet Coordinator::ReadyFleet() {
  Fleet fleet;
  const auto list = [&](const v1::ListWorkersRequest& request) {
    return WithCore([&](CoordinatorCore& core, Now) { return core.ListWorkers(request); });
  };
  const auto take = [&](const v1::ListWorkersResponse& response) {
    for (const v1::Worker& worker : response.workers()) {
      if (worker.state() != v1::Worker::READY || worker.kind() != v1::Worker::COMPUTE) continue;
      ++fleet.workers;
      const int64_t memory = worker.memory_bytes();
      if (memory > 0 &&
          (fleet.smallest_memory_bytes == 0 || memory < fleet.smallest_memory_bytes)) {
        fleet.smallest_memory_bytes = memory;
      }
    }
  };
  const absl::Status status =
      ForEachPage<v1::ListWorkersResponse>(v1::ListWorkersRequest(), list, take);
  if (!status.ok()) LogWarning("cannot list the workers: ", status.message());
  return fleet;
}

absl::StatusOr<v1::Job> Coordinator::CreateJob(const v1::CreateJobRequest& request) {
  if (!request.request_id().empty()) {
    // A resent request is answered before anything is checked: the output it made may stand by now.
    const auto resolved = Resolve(request.spec());
    if (resolved.ok()) {
      GRADQ_ASSIGN_OR_RETURN(const std::optional<v1::Job> job,
                             WithCore([&](CoordinatorCore& core, Now) {
                               return core.FindRequest(request.request_id(), *resolved);
                             }));
      if (job.has_value()) return *job;
    }
  }
  GRADQ_ASSIGN_OR_RETURN(AdmittedJob admitted, Admit(request.spec()));
  if (request.validate_only()) {
    v1::Job job;
    *job.mutable_spec() = admitted.job.spec;
    *job.mutable_plan() = ToProto(admitted);
    return job;
  }
  admitted.job.request_id = request.request_id();
  return Store(std::move(admitted));
}

absl::StatusOr<v1::JobSpec> Coordinator::Resolve(const v1::JobSpec& spec) {
  if (spec.source_job().empty()) return admission_.Resolve(spec);
  GRADQ_ASSIGN_OR_RETURN(const v1::JobRecord source, WithCore([&](CoordinatorCore& core, Now) {
                           return core.Record(spec.source_job());
                         }));
  return admission_.ResolvePoint(spec, source);
}

absl::StatusOr<AdmittedJob> Coordinator::Admit(const v1::JobSpec& spec) {
  if (spec.source_job().empty()) {
    return admission_.Check(spec, ReadyFleet(), /*needs_text=*/true);
  }
  GRADQ_ASSIGN_OR_RETURN(const v1::JobRecord source, WithCore([&](CoordinatorCore& core, Now) {
                           return core.Record(spec.source_job());
                         }));
  // Its shards are there; before any text is cut.
  v1::GetFrontierRequest request;
  request.set_name(spec.source_job());
  request.set_max_points(1);
  GRADQ_RETURN_IF_ERROR(
      WithCore([&](CoordinatorCore& core, Now) { return core.GetFrontier(request); }).status());
  return admission_.CheckPoint(spec, source);
}

absl::StatusOr<v1::Job> Coordinator::Store(AdmittedJob admitted) {
  const std::lock_guard lock(create_mutex_);
  std::vector<std::string> created;
  const auto put = [&](const std::string& tokens, std::string* name) -> absl::Status {
    if (tokens.empty()) return absl::OkStatus();
    GRADQ_ASSIGN_OR_RETURN(const BlobStore::Stored stored, blobs_.Put(tokens));
    if (stored.created) created.push_back(stored.sha256);
    *name = TokenFileName(stored.sha256);
    return absl::OkStatus();
  };
  const auto create = [&]() -> absl::StatusOr<v1::Job> {
    GRADQ_RETURN_IF_ERROR(put(admitted.calibration_tokens, &admitted.job.calibration_tokens));
    GRADQ_RETURN_IF_ERROR(put(admitted.evaluation_tokens, &admitted.job.evaluation_tokens));
    GRADQ_RETURN_IF_ERROR(CheckUnclaimed(admitted.job));
    return WithCore(
        [&](CoordinatorCore& core, Now now) { return core.CreateJob(now, admitted.job); });
  };
  absl::StatusOr<v1::Job> job = create();
  if (!job.ok()) {
    for (const std::string& sha256 : created) blobs_.Remove(sha256).IgnoreError();
  }
  return job;
}

absl::Status Coordinator::CheckUnclaimed(const NewJob& job) {
  const v1::JobSpec& spec = job.spec;
  if (spec.output().empty() || spec.force()) return absl::OkStatus();
  if (!job.request_id.empty()) {
    // Two copies of one request may pass the checks side by side; the core answers the second.
    const auto known = WithCore(
        [&](CoordinatorCore& core, Now) { return core.FindRequest(job.request_id, spec); });
    if (!known.ok()) return known.status();
    if (known->has_value()) return absl::OkStatus();
  }
  std::string owner;
  const auto take = [&](const v1::ListJobsResponse& page) {
    for (const v1::Job& other : page.jobs()) {
      if (!IsTerminal(other.state()) && other.spec().output() == spec.output())
        owner = other.name();
    }
  };
  GRADQ_RETURN_IF_ERROR(ForEachPage<v1::ListJobsResponse>(
      v1::ListJobsRequest(),
      [&](const v1::ListJobsRequest& request) {
        return WithCore([&](CoordinatorCore& core, Now) { return core.ListJobs(request); });
      },
      take));
  if (owner.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(
      StrCat("another job writes to this output: ", spec.output(), ", ", owner));
}

absl::StatusOr<v1::PlanJobResponse> Coordinator::PlanJob(const v1::PlanJobRequest& request) {
  if (request.workers() < 0) {
    return absl::InvalidArgumentError(StrCat("negative number of workers: ", request.workers()));
  }
  Fleet fleet = ReadyFleet();
  if (request.workers() > 0) fleet.workers = request.workers();
  GRADQ_ASSIGN_OR_RETURN(const AdmittedJob admitted,
                         admission_.Check(request.spec(), fleet, /*needs_text=*/false));
  v1::PlanJobResponse response;
  *response.mutable_plan() = ToProto(admitted);
  response.set_model_bytes(admitted.job.original_bytes);
  response.set_artifact_bytes(admitted.plan.artifact_bytes);
  response.set_weights_bytes(admitted.plan.weights_bytes);
  response.set_activations_bytes(admitted.plan.activations_bytes);
  response.set_statistics_bytes(admitted.plan.statistics_bytes);
  response.set_spool_bytes(admitted.plan.spool_bytes);
  response.set_pass_flop(admitted.plan.pass_flop);
  response.set_statistics_flop(admitted.plan.statistics_flop);
  response.set_solve_flop(admitted.plan.solve_flop);
  *response.mutable_inference_cpu() = ToProto(admitted.plan.inference_cpu);
  *response.mutable_inference_cuda() = ToProto(admitted.plan.inference_cuda);
  return response;
}

absl::StatusOr<std::string> Coordinator::JobFolder(std::string_view job) const {
  GRADQ_ASSIGN_OR_RETURN(const std::string id, JobId(job));
  return StrCat(options_.data_dir, "/jobs/", id);
}

absl::StatusOr<BlobStore> Coordinator::ShardsOf(std::string_view job) const {
  GRADQ_ASSIGN_OR_RETURN(const std::string folder, JobFolder(job));
  return BlobStore::At(folder + "/shards");
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> Coordinator::OpenModelFile(
    const v1::JobContext& context, const std::string& file) const {
  if (file == context.calibration_tokens() || file == context.evaluation_tokens()) {
    return blobs_.OpenBlob(TokenFileDigest(file));
  }
  GRADQ_ASSIGN_OR_RETURN(const auto folder, OpenLocalFolder(context.model_path()));
  return folder->Open(file);
}

absl::StatusOr<std::vector<FolderEntry>> Coordinator::ListModelFiles(
    const v1::JobContext& context) const {
  GRADQ_ASSIGN_OR_RETURN(const auto folder, OpenLocalFolder(context.model_path()));
  GRADQ_ASSIGN_OR_RETURN(std::vector<FolderEntry> entries, folder->List());
  for (const std::string& name : {context.calibration_tokens(), context.evaluation_tokens()}) {
    if (name.empty()) continue;
    GRADQ_ASSIGN_OR_RETURN(const auto file, blobs_.OpenBlob(TokenFileDigest(name)));
    entries.push_back({name, file->size()});
  }
  return entries;
}

}  // namespace gradq
