#include "lib/jobs/coordinator_core.h"

#include <algorithm>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/proto_time.h"
#include "lib/jobs/round_decision.h"
#include "lib/jobs/task_graph.h"
#include "lib/jobs/views.h"

namespace gradq {
namespace {

// Equal specs give equal digests: map fields are written in key order.
std::string SpecDigest(const v1::JobSpec& spec) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    spec.SerializeToCodedStream(&coded);
  }
  return Sha256Hex(std::string_view(bytes));
}

absl::Status RequestReused(std::string_view request_id, const std::string& job) {
  return absl::AlreadyExistsError(
      StrCat("request_id was used for a job with another spec: ", request_id, ", ", job));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorCore>> CoordinatorCore::Open(JobStore* store,
                                                                       const CoreOptions& options,
                                                                       Now now) {
  GRADQ_ASSIGN_OR_RETURN(const StoreContent content, store->Load());
  auto core = std::make_unique<CoreImpl>(store, options, content, now);
  GRADQ_RETURN_IF_ERROR(core->Restore(content));
  return core;
}

CoreImpl::CoreImpl(JobStore* store, CoreOptions options, const StoreContent& content, Now now)
    : store_(store),
      options_(std::move(options)),
      journal_(store, content.last_seq),
      epoch_(content.epoch),
      now_(now) {}

absl::Status CoreImpl::Restore(const StoreContent& content) {
  for (const StoreRecord& record : content.records) {
    absl::Status damaged =
        absl::DataLossError(StrCat("stored record does not parse: ", record.key));
    if (record.table == StoreRecord::Table::kRequests) {
      if (!requests_[record.key].ParseFromString(record.data)) return damaged;
    } else if (record.table == StoreRecord::Table::kJobs) {
      GRADQ_ASSIGN_OR_RETURN(const int64_t id, ParseJobName(record.key));
      if (!jobs_[id].record.ParseFromString(record.data)) return damaged;
      next_job_ = std::max(next_job_, id + 1);
    }
  }
  for (auto& [id, job] : jobs_) {
    GRADQ_RETURN_IF_ERROR(RestoreJob(&job, content));
    const bool point = !job.job().spec().source_job().empty();
    if (point && job.job().state() == v1::Job::QUEUED) StartPoint(&job);
  }
  return Flush();
}

absl::Status CoreImpl::RestoreJob(JobState* job, const StoreContent& content) {
  if (!job->job().has_plan()) return absl::OkStatus();
  GRADQ_ASSIGN_OR_RETURN(const ModelGeometry geometry, ParseGeometry(job->record.config_json()));
  GRADQ_RETURN_IF_ERROR(BuildTaskGraph(geometry, job));
  const std::string prefix = job->name() + "/";
  auto first = std::lower_bound(content.records.begin(), content.records.end(), prefix,
                                [](const StoreRecord& record, const std::string& key) {
                                  return std::pair(record.table, record.key) <
                                         std::pair(StoreRecord::Table::kTasks, key);
                                });
  for (; first != content.records.end() && first->key.compare(0, prefix.size(), prefix) == 0;
       ++first) {
    const auto index = job->task_index.find(first->key);
    if (index == job->task_index.end() ||
        !job->tasks[index->second].record.ParseFromString(first->data)) {
      return absl::DataLossError(StrCat("stored task does not fit its job's plan: ", first->key));
    }
  }
  if (IsTerminal(job->job().state())) return absl::OkStatus();

  for (size_t i = 0; i < job->tasks.size(); ++i) {
    TaskState& task = job->tasks[i];
    if (!task.running()) continue;
    const int index = static_cast<int>(i);
    if (task.is_stage()) {
      // What it streams can't be reached: its worker's session ended with the old coordinator.
      LoseAttempt(job, index, false, "the coordinator was restarted");
    } else if (!task.record.session().empty()) {
      // A solve or a validation may still finish under its old session, within one TTL.
      if (fleet_.FindSession(task.record.session()) != nullptr) continue;
      if (WorkerState* other = fleet_.FindName(task.task().worker())) {
        if (other->alive()) continue;
      }
      v1::Worker info;
      info.set_name(task.task().worker());
      info.set_state(v1::Worker::LOST);
      info.set_kind(task.task().spec().has_validate() ? v1::Worker::INFERENCE
                                                      : v1::Worker::COMPUTE);
      info.set_task(task.task().name());
      WorkerState& ghost = fleet_.Put(std::move(info), task.record.session(), now_.monotonic);
      ghost.ghost = true;
      ghost.slot = Slot{task.task().name(), task.task().attempt(), false, false, now_.monotonic};
    }
  }
  job->validate_pending_since = now_.monotonic;
  if (job->job().state() == v1::Job::CANCELLING) {
    MaybeFinishCancel(job, true);
  } else if (job->job().state() == v1::Job::ASSEMBLING) {
    staged_actions_.push_back(StartAssemble{job->name(), job->record.renaming()});
  } else if (job->job().state() == v1::Job::RUNNING) {
    SettleJob(job);
  }
  return absl::OkStatus();
}

// --- time and commits ---

void CoreImpl::Begin(Now now) {
  const absl::Duration passed = std::max(absl::ZeroDuration(), now.monotonic - now_.monotonic);
  now_.monotonic += passed;
  now_.wall = now.wall;
  AccruePhases(passed);
  if (passed > options_.lease_ttl) {
    // This process stood still (NextDeadline asks for calls more often than that): the silence is
    // not the workers'.
    for (auto& [name, worker] : fleet_.workers()) {
      worker.last_seen = std::min(now_.monotonic, worker.last_seen + passed);
      if (worker.slot) {
        worker.slot->last_listed = std::min(now_.monotonic, worker.slot->last_listed + passed);
      }
    }
  }
  ExpireWorkers();
  ExpireJobs();
}

void CoreImpl::AccruePhases(absl::Duration by) {
  const double seconds = absl::ToDoubleSeconds(by);
  if (seconds <= 0) return;
  for (auto& [id, job] : jobs_) {
    const v1::Job::State state = job.job().state();
    if (IsTerminal(state)) continue;
    v1::JobProgress& progress = *job.job().mutable_progress();
    auto& phases = *progress.mutable_phase_seconds();
    if (state == v1::Job::QUEUED) phases["queue"] += seconds;
    std::vector<std::string_view> running;  // phases, each once
    bool computing = false;
    for (const TaskState& task : job.tasks) {
      if (!task.running()) continue;
      computing |= task.is_stage() || task.is_score() || task.is_solve();
      const std::string_view phase = PhaseOf(task.task().spec());
      if (std::find(running.begin(), running.end(), phase) == running.end()) {
        running.push_back(phase);
      }
    }
    for (std::string_view phase : running) phases[std::string(phase)] += seconds;
    if ((state == v1::Job::RUNNING || state == v1::Job::ASSEMBLING) && !computing) {
      progress.set_idle_seconds(progress.idle_seconds() + seconds);
    }
  }
}

absl::Status CoreImpl::Flush() {
  for (const auto& [name, index] : dirty_tasks_) {
    const TaskState& task = FindJob(name)->tasks[index];
    journal_.Put(StoreRecord::Table::kTasks, task.task().name(), task.record.SerializeAsString());
    dirty_jobs_.insert(name);
  }
  for (const std::string& name : dirty_jobs_) {
    JobState& job = *FindJob(name);
    UpdateProgress(&job);
    job.job().set_revision(job.job().revision() + 1);
    job.job().set_etag(EtagOf(job.job()));
    journal_.Put(StoreRecord::Table::kJobs, name, job.record.SerializeAsString());
  }
  dirty_tasks_.clear();
  dirty_jobs_.clear();
  if (!journal_.empty()) {
    ++changed_;
    GRADQ_RETURN_IF_ERROR(journal_.Commit());
  }
  for (Action& action : staged_actions_) actions_.push_back(std::move(action));
  staged_actions_.clear();
  return absl::OkStatus();
}

void CoreImpl::Event(const JobState* job, const std::string& subject, std::string_view type,
                     std::string message) {
  journal_.AddEvent(now_.wall, job == nullptr ? "" : job->name(), subject, type,
                    std::move(message));
}

void CoreImpl::TouchTask(JobState* job, int task) { dirty_tasks_.insert({job->name(), task}); }

JobState* CoreImpl::FindJob(std::string_view name) {
  const absl::StatusOr<int64_t> id = ParseJobName(name);
  if (!id.ok()) return nullptr;
  const auto found = jobs_.find(*id);
  return found == jobs_.end() ? nullptr : &found->second;
}

const JobState* CoreImpl::FindJob(std::string_view name) const {
  return const_cast<CoreImpl*>(this)->FindJob(name);
}

std::pair<JobState*, int> CoreImpl::FindTask(const std::string& name) {
  const absl::StatusOr<std::string> owner = JobOfTask(name);
  JobState* job = owner.ok() ? FindJob(*owner) : nullptr;
  if (job == nullptr) return {nullptr, -1};
  const auto found = job->task_index.find(name);
  if (found == job->task_index.end()) return {nullptr, -1};
  return {job, found->second};
}

std::string CoreImpl::ReadToken(const JobState& job) const {
  return Sha256Hex(std::string_view(StrCat(options_.secret, "|", epoch_, "|", job.name())));
}

// --- clients ---

absl::StatusOr<v1::Job> CoreImpl::CreateJob(Now now, const NewJob& request) {
  Begin(now);
  GRADQ_RETURN_IF_ERROR(Flush());  // so that below only this job is uncommitted
  GRADQ_ASSIGN_OR_RETURN(const std::optional<v1::Job> earlier,
                         FindRequest(request.request_id, request.spec));
  if (earlier) return *earlier;
  int queued = 0;
  for (const auto& [id, job] : jobs_) queued += job.job().state() == v1::Job::QUEUED ? 1 : 0;
  if (queued >= options_.max_queued_jobs) {
    return absl::ResourceExhaustedError(
        StrCat("the queue of jobs is full: ", queued, " of ", options_.max_queued_jobs));
  }

  const int64_t id = next_job_;
  v1::JobRecord record;
  record.set_request_id(request.request_id);
  record.set_config_json(request.config_json);
  record.set_model_path(request.model_path);
  record.set_model_digest(request.model_digest);
  record.set_calibration_tokens(request.calibration_tokens);
  record.set_evaluation_tokens(request.evaluation_tokens);
  record.set_evaluation_sequences(request.evaluation_sequences);
  record.set_output_path(request.output_path);
  v1::Job& created = *record.mutable_job();
  created.set_name(StrCat("jobs/", id));
  *created.mutable_spec() = request.spec;
  created.set_state(v1::Job::QUEUED);
  *created.mutable_create_time() = ToTimestamp(now_.wall);
  created.mutable_progress()->set_original_bytes(request.original_bytes);
  created.mutable_validation()->set_state(request.spec.evaluation_blob().empty()
                                              ? v1::Validation::NOT_REQUESTED
                                              : v1::Validation::PENDING);
  const bool point = !request.spec.source_job().empty();
  if (point) GRADQ_RETURN_IF_ERROR(FillFromSource(&record));
  JobState& job = jobs_[id];
  job.record = std::move(record);
  if (!request.request_id.empty()) {
    v1::RequestRecord& made = requests_[request.request_id];
    made.set_job(job.name());
    made.set_spec_digest(SpecDigest(request.spec));
    journal_.Put(StoreRecord::Table::kRequests, request.request_id, made.SerializeAsString());
  }
  Event(&job, job.name(), events::kJobCreated, request.spec.model());
  TouchJob(job);
  if (absl::Status stored = Flush(); !stored.ok()) {
    // A job that could not be stored was never accepted.
    journal_.Discard();
    requests_.erase(request.request_id);
    jobs_.erase(id);
    return stored;
  }
  ++next_job_;
  if (point) {
    StartPoint(&job);
    GRADQ_RETURN_IF_ERROR(Flush());
  }
  return job.job();
}

absl::StatusOr<std::optional<v1::Job>> CoreImpl::FindRequest(std::string_view request_id,
                                                             const v1::JobSpec& spec) const {
  const auto made = requests_.find(request_id);
  if (request_id.empty() || made == requests_.end()) return std::optional<v1::Job>();
  if (made->second.spec_digest() != SpecDigest(spec)) {
    return RequestReused(request_id, made->second.job());
  }
  GRADQ_ASSIGN_OR_RETURN(v1::Job job, GetJob(made->second.job()));
  return std::optional<v1::Job>(std::move(job));
}

absl::StatusOr<v1::Job> CoreImpl::GetJob(std::string_view name) const {
  GRADQ_RETURN_IF_ERROR(ParseJobName(name).status());
  const JobState* job = FindJob(name);
  if (job == nullptr) return absl::NotFoundError(StrCat("no such job: ", name));
  return job->job();
}

absl::StatusOr<v1::ListJobsResponse> CoreImpl::ListJobs(const v1::ListJobsRequest& request) const {
  GRADQ_ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  GRADQ_ASSIGN_OR_RETURN(const std::string last, ParsePageToken("jobs", request.page_token()));
  auto next = jobs_.end();
  if (!last.empty()) {
    GRADQ_ASSIGN_OR_RETURN(const int64_t id, ParseJobName(last));
    next = jobs_.lower_bound(id);
  }
  v1::ListJobsResponse response;
  while (next != jobs_.begin() && response.jobs_size() < size) {
    --next;
    *response.add_jobs() = next->second.job();
  }
  if (next != jobs_.begin()) {
    response.set_next_page_token(MakePageToken("jobs", next->second.name()));
  }
  return response;
}

absl::StatusOr<v1::ListTasksResponse> CoreImpl::ListTasks(
    const v1::ListTasksRequest& request) const {
  GRADQ_RETURN_IF_ERROR(GetJob(request.parent()).status());
  const JobState& job = *FindJob(request.parent());
  GRADQ_ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  const std::string list = StrCat("tasks|", request.parent());
  GRADQ_ASSIGN_OR_RETURN(const std::string last, ParsePageToken(list, request.page_token()));
  size_t next = 0;
  if (!last.empty()) {
    const auto found = job.task_index.find(last);
    if (found == job.task_index.end()) return absl::InvalidArgumentError("stale page_token");
    next = static_cast<size_t>(found->second) + 1;
  }
  v1::ListTasksResponse response;
  for (; next < job.tasks.size() && response.tasks_size() < size; ++next) {
    *response.add_tasks() = job.tasks[next].task();
  }
  if (next < job.tasks.size()) {
    response.set_next_page_token(MakePageToken(list, job.tasks[next - 1].task().name()));
  }
  return response;
}

absl::StatusOr<v1::ListWorkersResponse> CoreImpl::ListWorkers(
    const v1::ListWorkersRequest& request) const {
  GRADQ_ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  GRADQ_ASSIGN_OR_RETURN(const std::string last, ParsePageToken("workers", request.page_token()));
  v1::ListWorkersResponse response;
  auto next = fleet_.workers().upper_bound(last);
  for (; next != fleet_.workers().end() && response.workers_size() < size; ++next) {
    *response.add_workers() = next->second.info;
  }
  if (next != fleet_.workers().end()) {
    response.set_next_page_token(
        MakePageToken("workers", response.workers(response.workers_size() - 1).name()));
  }
  return response;
}

absl::StatusOr<v1::ListEventsResponse> CoreImpl::ListEvents(
    const v1::ListEventsRequest& request) const {
  if (!request.parent().empty()) GRADQ_RETURN_IF_ERROR(GetJob(request.parent()).status());
  GRADQ_ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<StoreEvent> stored,
                         store_->Events(request.parent(), request.after_seq(), size));
  v1::ListEventsResponse response;
  for (const StoreEvent& event : stored) {
    if (!response.add_events()->ParseFromString(event.data)) {
      return absl::DataLossError(StrCat("stored event does not parse: ", event.seq));
    }
  }
  return response;
}

absl::StatusOr<v1::JobContext> CoreImpl::ContextFor(const std::string& session,
                                                    const std::string& job) const {
  if (fleet_.FindSession(session) == nullptr) {
    return absl::NotFoundError(StrCat("unknown session: ", session));
  }
  GRADQ_RETURN_IF_ERROR(GetJob(job).status());
  return ContextOf(*FindJob(job));
}

absl::StatusOr<std::vector<v1::ShardSummary>> CoreImpl::Shards(const std::string& name) const {
  GRADQ_RETURN_IF_ERROR(GetJob(name).status());
  const JobState& job = *FindJob(name);
  const JobState& owner = ShardOwner(job);
  std::vector<v1::ShardSummary> shards;
  const int final = job.final_round;
  if (job.rounds.empty() || !job.Solved(final)) return shards;
  if (job.rounds[final].choice >= 0 && !job.Decided(job.rounds[final].choice)) return shards;
  if (&owner != &job) {
    if (!job.Decided(0)) return shards;
    const v1::Decision& decision = job.tasks[job.rounds[0].decide].task().result().decision();
    const std::vector<PricedLinear> linears = PricedLinears(owner, false);
    for (size_t l = 0; l < linears.size(); ++l) {
      shards.push_back(*linears[l].shards[decision.linears(static_cast<int>(l)).variant()]);
    }
    return shards;
  }
  for (size_t l = 0; l < job.linears.size(); ++l) {
    shards.push_back(job.ChosenShard(final, static_cast<int>(l)));
  }
  return shards;
}

absl::StatusOr<v1::JobRecord> CoreImpl::Record(const std::string& name) const {
  GRADQ_RETURN_IF_ERROR(GetJob(name).status());
  return FindJob(name)->record;
}

// --- deadlines ---

absl::Status CoreImpl::Tick(Now now) {
  Begin(now);
  return Flush();
}

absl::Duration CoreImpl::NextDeadline() const {
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& [name, worker] : fleet_.workers()) {
    if (!worker.alive()) continue;
    next = std::min(next, worker.last_seen + options_.lease_ttl);
    // Regular calls tell a coordinator that stood still from workers that fell silent.
    next = std::min(next, now_.monotonic + options_.lease_ttl / 2);
  }
  for (const auto& [id, job] : jobs_) {
    if (job.job().has_shards_expire_time()) {
      // Not before a job that reads them has ended, which is a call of its own.
      const absl::Duration left = FromTimestamp(job.job().shards_expire_time()) - now_.wall;
      next = std::min(next, now_.monotonic + std::max(left, options_.lease_ttl / 2));
    }
    if (job.job().state() != v1::Job::VALIDATING || job.tasks[job.validate].running()) continue;
    next = std::min(next, job.validate_pending_since + ValidateTimeout(job.job().spec()));
  }
  for (const auto& [name, since] : cancel_since_) {
    if (!Assembles(*FindJob(name))) next = std::min(next, since + options_.lease_ttl);
  }
  return next;
}

}  // namespace gradq
