#include "tests/jobs/simulation.h"

#include <algorithm>
#include <type_traits>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "tests/jobs/job_fixture.h"
#include "tests/jobs/lease_check.h"

namespace gradq {
namespace {

constexpr absl::Duration kTtl = absl::Milliseconds(600);
constexpr absl::Duration kHeartbeat = absl::Milliseconds(200);
constexpr absl::Duration kStep = absl::Milliseconds(20);
constexpr int kPatience = 8;  // turns a reader waits for a producer that doesn't answer

std::string Key(const v1::StreamName& name) {
  return StrCat(name.task(), "|", name.attempt(), "|", name.lane());
}

}  // namespace

struct Simulation::Worker {
  std::string name;
  v1::Worker::Kind kind = v1::Worker::COMPUTE;

  // The process.
  bool alive = true;
  absl::Duration back_at = absl::InfiniteDuration();
  absl::Duration stalled_until = -absl::InfiniteDuration();
  std::string session;
  absl::Duration next_heartbeat = absl::ZeroDuration();

  struct Running {
    v1::Lease lease;
    int done = 0;
    int waited = 0;
  };
  std::optional<Running> running;
  std::optional<v1::FinishTaskRequest> finish;  // resent until answered

  struct Stream {
    int chunks = 0;
    bool complete = false;
  };
  std::map<std::string, Stream> streams;  // by Key
  std::set<std::string> freed;
  int64_t acknowledged = 0;
};

Simulation::Simulation(SimulationOptions options, Fault fault)
    : options_(std::move(options)),
      fault_(fault),
      random_(options_.seed.value_or(0)),
      store_(MakeMemoryStore()) {
  Open();
  for (int i = 0; i < options_.workers + options_.inference_workers; ++i) {
    auto worker = std::make_unique<Worker>();
    const bool compute = i < options_.workers;
    worker->name = StrCat(compute ? "w" : "i", i);
    worker->kind = compute ? v1::Worker::COMPUTE : v1::Worker::INFERENCE;
    workers_.push_back(std::move(worker));
  }
  NewJob job = TinyJob(options_.stages);
  job.spec.set_stages(options_.stages);
  v1::Recipe& recipe = *job.spec.mutable_recipe();
  recipe.set_method(options_.method);
  recipe.set_objective(options_.objective);
  recipe.clear_options();
  recipe.mutable_options()->insert(options_.method_options.begin(), options_.method_options.end());
  recipe.set_outliers(options_.outliers);
  recipe.mutable_outlier_options()->insert(options_.outlier_options.begin(),
                                           options_.outlier_options.end());
  if (options_.average_bits) recipe.set_average_bits(*options_.average_bits);
  ResolveRecipe(&job.spec);
  if (options_.evaluation) job.spec.set_evaluation_blob(Sha256Hex(std::string_view("text")));
  job.spec.set_validate_timeout_s(5);
  if (options_.small_memory) worker_memory_ = JustEnoughMemory(job);
  const auto created = core_->CreateJob(now(), job);
  GRADQ_CHECK(created.ok());
  job_ = created->name();
}

Simulation::~Simulation() = default;

void Simulation::Open() {
  CoreOptions options;
  options.lease_ttl = kTtl;
  options.heartbeat_interval = kHeartbeat;
  core_.reset();
  auto opened = CoordinatorCore::Open(store_.get(), options, now());
  GRADQ_CHECK(opened.ok());
  core_ = *std::move(opened);
  seen_ = -1;
  assembly_.reset();
}

v1::Job Simulation::job() const { return core_->GetJob(job_).value(); }

std::vector<v1::Task> Simulation::tasks() const {
  v1::ListTasksRequest request;
  request.set_parent(job_);
  request.set_page_size(1000);
  const auto response = core_->ListTasks(request).value();
  return {response.tasks().begin(), response.tasks().end()};
}

std::vector<v1::Event> Simulation::events() const {
  std::vector<v1::Event> all;
  v1::ListEventsRequest request;
  request.set_page_size(1000);
  while (true) {
    const auto page = core_->ListEvents(request).value();
    all.insert(all.end(), page.events().begin(), page.events().end());
    if (page.events_size() < 1000) return all;
    request.set_after_seq(all.back().seq());
  }
}

std::string Simulation::Describe() const {
  std::string text = StrCat("job: ", job().ShortDebugString(), "\n");
  for (const v1::Task& task : tasks()) {
    if (task.state() != v1::Task::SUCCEEDED) text += StrCat(task.ShortDebugString(), "\n");
  }
  for (const v1::Event& event : events()) {
    text +=
        StrCat(event.seq(), " ", event.subject(), " ", event.type(), " ", event.message(), "\n");
  }
  for (const std::string& violation : violations_) text += StrCat("VIOLATION ", violation, "\n");
  return text;
}

// --- the transport ---

template <typename Answer>
std::optional<Answer> Simulation::Call(Worker* worker, std::function<Answer()> call) {
  const int number = calls_++;
  const FaultKind fault = number == fault_.at_call ? fault_.kind : FaultKind::kNone;
  const auto chance = [&](double share) {
    return share > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < share;
  };
  if (fault == FaultKind::kDeathBefore) {
    Die(worker, kTtl / 4);
    return std::nullopt;
  }
  if (fault == FaultKind::kStall) {
    worker->stalled_until = clock_.Monotonic() + 2 * kTtl;
    later_.emplace(clock_.Monotonic() + 2 * kTtl, [call] { (void)call(); });
    return std::nullopt;
  }
  if (chance(options_.lose / 2)) return std::nullopt;
  const int64_t before = core_->changed();
  Answer answer = call();
  if (core_->changed() != before) effective_calls_.push_back(number);
  if (fault == FaultKind::kRepeat || chance(options_.repeat)) {
    const absl::Duration delay =
        fault == FaultKind::kRepeat ? kTtl : kStep * static_cast<int>(random_() % 60);
    later_.emplace(clock_.Monotonic() + delay, [call] { (void)call(); });
  }
  if (fault == FaultKind::kDeathAfter || fault == FaultKind::kDeathForGood) {
    Die(worker, fault == FaultKind::kDeathAfter ? 2 * kTtl : absl::InfiniteDuration());
    return std::nullopt;
  }
  if (fault == FaultKind::kRestart) Open();
  if (fault == FaultKind::kCancel) {
    v1::CancelJobRequest cancel;
    cancel.set_name(job_);
    const auto cancelled = core_->CancelJob(now(), cancel);
    if (cancelled.ok() != (renames_ == 0)) {
      Violation(StrCat("cancel against rename: ", cancelled.status().ToString(), ", ", renames_));
    }
  }
  if (chance(options_.lose / 2)) return std::nullopt;
  return answer;
}

void Simulation::Die(Worker* worker, absl::Duration back_after) {
  ForgetProcess(worker);
  worker->alive = false;
  worker->back_at = clock_.Monotonic() + back_after;
}

void Simulation::ForgetProcess(Worker* worker) {
  worker->session.clear();
  worker->running.reset();
  worker->finish.reset();
  worker->streams.clear();
  worker->freed.clear();
  worker->acknowledged = 0;
}

// --- steps ---

bool Simulation::Run(int max_steps) {
  std::optional<absl::Duration> ended;
  bool terminal = false;
  for (int step = 0; step < max_steps; ++step) {
    Step();
    if (!violations_.empty()) return false;
    if (core_->changed() != seen_) {
      seen_ = core_->changed();
      const v1::Job::State state = job().state();
      terminal =
          state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
    }
    if (terminal && !ended) ended = clock_.Monotonic();
    // Time for late messages and for the last orders to arrive.
    if (ended && clock_.Monotonic() - *ended > 3 * kTtl) {
      for (const auto& worker : workers_) {
        if (!worker->session.empty() && worker->stalled_until < clock_.Monotonic() - 2 * kTtl &&
            !worker->streams.empty()) {
          Violation(StrCat("streams are left after the job's end: ", worker->name, ", ",
                           worker->streams.begin()->first));
        }
      }
      return violations_.empty();
    }
  }
  return false;
}

void Simulation::Step() {
  clock_.Advance(kStep);
  while (!later_.empty() && later_.begin()->first <= clock_.Monotonic()) {
    later_.extract(later_.begin()).mapped()();
  }
  if (core_->NextDeadline() <= clock_.Monotonic()) (void)core_->Tick(now());
  const auto happens = [&](int* budget) {
    if (*budget == 0 || random_() % 50 != 0) return false;
    --*budget;
    return true;
  };
  Worker* victim = workers_[random_() % workers_.size()].get();
  if (happens(&options_.deaths) && victim->alive) {
    Die(victim, kStep * static_cast<int>(random_() % 80));
  }
  if (happens(&options_.stalls)) {
    victim->stalled_until = clock_.Monotonic() + kStep * static_cast<int>(random_() % 80);
  }
  if (happens(&options_.restarts)) Open();
  // In turn, or any: a step is one action of one worker per worker on average.
  for (size_t i = 0; i < workers_.size(); ++i) {
    Worker* next = options_.seed ? workers_[random_() % workers_.size()].get()
                                 : workers_[(i + turn_) % workers_.size()].get();
    Act(next);
  }
  Assemble();
}

void Simulation::Act(Worker* worker) {
  if (!worker->alive) {
    if (clock_.Monotonic() < worker->back_at) return;
    worker->alive = true;
  }
  if (worker->stalled_until > clock_.Monotonic()) return;
  if (worker->session.empty()) return Register(worker);
  if (clock_.Monotonic() >= worker->next_heartbeat) return Heartbeat(worker);
  if (worker->finish) return SendFinish(worker);
  if (worker->running) return Work(worker);
  Lease(worker);
}

void Simulation::Register(Worker* worker) {
  v1::RegisterWorkerRequest request;
  request.set_name(worker->name);
  request.set_kind(worker->kind);
  request.set_advertise(StrCat(worker->name, ":1"));
  request.set_memory_bytes(worker_memory_);
  request.set_numerics_class("class");
  using Answer = absl::StatusOr<v1::RegisterWorkerResponse>;
  // A repeated registration would be a second process of that name: it is not repeated.
  const double repeat = std::exchange(options_.repeat, 0);
  const auto answer =
      Call<Answer>(worker, [this, request] { return core_->RegisterWorker(now(), request); });
  options_.repeat = repeat;
  if (!answer || !answer->ok()) return;
  worker->session = (*answer)->session();
  worker->next_heartbeat = clock_.Monotonic() + kHeartbeat;
}

void Simulation::Heartbeat(Worker* worker) {
  v1::HeartbeatRequest request;
  request.set_session(worker->session);
  request.set_acknowledged_order(worker->acknowledged);
  if (worker->running) {
    v1::AttemptProgress& progress = *request.add_running();
    progress.set_task(worker->running->lease.task());
    progress.set_attempt(worker->running->lease.attempt());
    progress.set_chunks_done(worker->running->done);
  }
  using Answer = absl::StatusOr<v1::HeartbeatResponse>;
  const auto answer =
      Call<Answer>(worker, [this, request] { return core_->Heartbeat(now(), request); });
  if (!answer) return;
  worker->next_heartbeat = clock_.Monotonic() + kHeartbeat;
  if (!answer->ok()) return ForgetProcess(worker);  // fenced: it starts anew
  for (const v1::StreamName& freed : (*answer)->freed()) Obey(worker, freed);
  worker->acknowledged = (*answer)->order();
  for (const v1::AttemptProgress& revoked : (*answer)->revoked()) {
    if (!worker->running || worker->running->lease.task() != revoked.task() ||
        worker->running->lease.attempt() != revoked.attempt()) {
      continue;
    }
    v1::FinishTaskRequest finish;
    finish.set_session(worker->session);
    finish.set_task(revoked.task());
    finish.set_attempt(revoked.attempt());
    finish.set_outcome(v1::FinishTaskRequest::STOPPED);
    worker->finish = finish;
    worker->running.reset();
  }
}

void Simulation::Obey(Worker* worker, const v1::StreamName& freed) {
  for (auto it = worker->streams.begin(); it != worker->streams.end();) {
    const std::string prefix = freed.task().empty() ? ""
                               : freed.lane().empty()
                                   ? StrCat(freed.task(), "|", freed.attempt(), "|")
                                   : Key(freed);
    const bool match = freed.lane().empty() ? it->first.compare(0, prefix.size(), prefix) == 0
                                            : it->first == prefix;
    if (!match) {
      ++it;
      continue;
    }
    worker->freed.insert(it->first);
    it = worker->streams.erase(it);
  }
}

void Simulation::Lease(Worker* worker) {
  using Answer = absl::StatusOr<std::optional<v1::Lease>>;
  const std::string session = worker->session;
  const auto answer = Call<Answer>(worker, [this, session]() -> Answer {
    Answer given = core_->TryLease(now(), session);
    if (given.ok() && *given) {
      int64_t& latest = leased_[(*given)->task()];
      if ((*given)->attempt() < latest) {
        Violation(StrCat("attempt numbers went back: ", (*given)->task()));
      }
      latest = (*given)->attempt();
    }
    return given;
  });
  if (!answer) return;
  if (!answer->ok()) return ForgetProcess(worker);
  if (!(**answer)) return;
  const v1::Lease& lease = ***answer;
  for (const v1::StreamName& freed : lease.freed()) Obey(worker, freed);
  worker->running = Worker::Running{lease, 0, 0};
  const bool compute = !lease.spec().has_validate();
  if (const std::string wrong = WrongInLease(lease, shards_); !wrong.empty()) Violation(wrong);
  if (compute != (worker->kind == v1::Worker::COMPUTE)) {
    Violation(StrCat("a task for the wrong kind of worker: ", lease.task(), ", ", worker->name));
  }
  if (!lease.spec().has_run_stage()) return;
  const v1::RunStage& run = lease.spec().run_stage();
  const int last = lease.job().plan().first_block_size() - 1;
  const bool streams =
      run.direction() == v1::RunStage::FORWARD ? run.stage() < last : run.stage() > 0;
  if (streams) {
    const std::string id = lease.task().substr(lease.task().rfind('/') + 1);
    worker->streams[StrCat(id, "|", lease.attempt(), "|out")] = {};
  }
}

void Simulation::Work(Worker* worker) {
  Worker::Running& running = *worker->running;
  if (running.lease.spec().has_run_stage()) return WorkOnStage(worker);
  if (!running.lease.spec().has_validate()) return WorkOnLinear(worker);
  v1::FinishTaskRequest finish;
  finish.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
  finish.mutable_result()->mutable_comparison()->set_tokens(7);
  worker->finish = finish;
}

// A reader's view of another process: the session in the lease tells whether it is still the same
// one.
int Simulation::ReadInput(Worker* reader, const v1::StreamLocation& location, int index) {
  for (const auto& producer : workers_) {
    if (!producer->alive || producer->session != location.worker()) continue;
    const std::string key = Key(location.stream());
    const auto stream = producer->streams.find(key);
    if (stream != producer->streams.end()) {
      if (stream->second.chunks > index) return 1;
      return 0;
    }
    const v1::Lease& lease = reader->running->lease;
    if (producer->freed.count(key) > 0 &&
        core_->CheckAttempt(reader->session, lease.task(), lease.attempt()).ok()) {
      Violation(StrCat("freed under a live reader: ", key, ", ", lease.task()));
    }
    break;
  }
  return ++reader->running->waited > kPatience ? -1 : 0;
}

void Simulation::WorkOnStage(Worker* worker) {
  Worker::Running& running = *worker->running;
  const v1::Lease& lease = running.lease;
  const v1::RunStage& run = lease.spec().run_stage();
  const std::string id = lease.task().substr(lease.task().rfind('/') + 1);
  const std::string prefix = StrCat(id, "|", lease.attempt(), "|");
  v1::FinishTaskRequest finish;
  if (running.done < run.chunks()) {
    for (const v1::StreamLocation* input :
         {lease.has_activations() ? &lease.activations() : nullptr,
          lease.has_gradients() ? &lease.gradients() : nullptr}) {
      if (input == nullptr) continue;
      const int read = ReadInput(worker, *input, running.done);
      if (read == 0) return;
      if (read < 0) {
        finish.set_outcome(v1::FinishTaskRequest::INPUT_LOST);
        if (options_.name_lost_inputs) *finish.add_lost_inputs() = input->stream();
        worker->finish = finish;
        return;
      }
    }
    running.waited = 0;
    ++running.done;
    if (const auto out = worker->streams.find(prefix + "out"); out != worker->streams.end()) {
      // Nodes whose loss alone is taken come last and make no gradients.
      const bool gradients = run.direction() == v1::RunStage::BACKWARD;
      out->second.chunks = gradients ? std::min(running.done, SummedChunks(lease)) : running.done;
    }
    return;
  }
  if (!run.accumulate().empty()) {
    const v1::JobPlan& plan = lease.job().plan();
    std::vector<std::string> linears(run.linears().begin(), run.linears().end());
    for (int i = 0; linears.size() < 1000 && run.linears().empty() && i < plan.linears_size();
         ++i) {
      const int block = i / 7;
      int stage = 0;
      while (stage + 1 < plan.first_block_size() && plan.first_block(stage + 1) <= block) ++stage;
      if (stage == run.stage()) linears.push_back(plan.linears(i));
    }
    for (const std::string& linear : linears) {
      worker->streams[StrCat(prefix, "stat/", linear)] = {1, true};
    }
    CheckHeld(*worker);
  }
  *finish.mutable_result() = FakeResult(lease);
  finish.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
  worker->finish = finish;
}

void Simulation::WorkOnLinear(Worker* worker) {
  Worker::Running& running = *worker->running;
  const v1::Lease& lease = running.lease;
  v1::FinishTaskRequest finish;
  if (running.done == 0) {
    for (const v1::StreamLocation& statistic : lease.statistics()) {
      const int read = ReadInput(worker, statistic, 0);
      if (read == 0) return;
      if (read < 0) {
        finish.set_outcome(v1::FinishTaskRequest::INPUT_LOST);
        if (options_.name_lost_inputs) *finish.add_lost_inputs() = statistic.stream();
        worker->finish = finish;
        return;
      }
      if (statistic.worker() != worker->session) ++pulled_solves_;
    }
    running.done = 1;
    return;
  }
  *finish.mutable_result() = FakeResult(lease);
  if (core_->CheckAttempt(worker->session, lease.task(), lease.attempt()).ok()) {
    for (const v1::ShardSummary& shard : finish.result().shards()) shards_.insert(shard.sha256());
  }
  finish.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
  worker->finish = finish;
}

void Simulation::SendFinish(Worker* worker) {
  v1::FinishTaskRequest request = *worker->finish;
  if (request.task().empty()) {
    request.set_session(worker->session);
    request.set_task(worker->running->lease.task());
    request.set_attempt(worker->running->lease.attempt());
  }
  const auto answer = Call<absl::Status>(worker, [this, request] {
    const absl::Status given = core_->FinishTask(now(), request);
    if (given.ok() && request.outcome() == v1::FinishTaskRequest::SUCCEEDED) {
      int64_t& accepted = accepted_[request.task()];
      const bool resent = accepted == request.attempt();
      if (!resent && request.attempt() != leased_[request.task()]) {
        Violation(
            StrCat("a fenced attempt was accepted: ", request.task(), ", ", request.attempt()));
      }
      if (!resent && request.has_result() &&
          (request.result().shards_size() > 0 || request.result().has_score()) && accepted != 0) {
        Violation(StrCat("a shard was accepted twice: ", request.task()));
      }
      accepted = request.attempt();
    }
    return given;
  });
  if (!answer) return;
  const std::string attempt_prefix =
      StrCat(request.task().substr(request.task().rfind('/') + 1), "|", request.attempt(), "|");
  const bool made = answer->ok() && request.outcome() == v1::FinishTaskRequest::SUCCEEDED;
  for (auto it = worker->streams.begin(); it != worker->streams.end();) {
    const bool drop = !made && it->first.compare(0, attempt_prefix.size(), attempt_prefix) == 0;
    it = drop ? worker->streams.erase(it) : std::next(it);
  }
  worker->finish.reset();
  worker->running.reset();
}

void Simulation::CheckHeld(const Worker& worker) {
  std::set<std::string> stages;
  for (const auto& [key, stream] : worker.streams) {
    if (key.find("|stat/") != std::string::npos) stages.insert(key.substr(0, key.find('|')));
  }
  // Where statistics wait for another round, stages must pile up.
  if (options_.small_memory && job().plan().rounds_size() == 1 && !job().plan().rounds(0).score() &&
      stages.size() > 1) {
    Violation(StrCat("more statistics than fit: ", worker.name, ", ", *stages.begin(), ", ",
                     *stages.rbegin()));
  }
}

// --- the service's part ---

void Simulation::Assemble() {
  for (const Action& action : core_->TakeActions()) {
    if (const auto* start = std::get_if<StartAssemble>(&action)) {
      if (start->may_be_renamed != (renames_ > 0)) {
        Violation("the action does not tell whether a rename was allowed");
      }
      assembly_ = Assembly{start->job, 0};
    } else {
      removed_ |= !std::get<RemoveJobData>(action).shards_only;
    }
  }
  if (!assembly_) return;
  switch (assembly_->step++) {
    case 0: {
      const auto shards = core_->Shards(assembly_->job).value();
      if (static_cast<int>(shards.size()) != job().plan().linears_size()) {
        Violation("assembly starts without all shards");
      }
      artifact_.clear();
      for (const v1::ShardSummary& shard : shards) {
        if (shards_.count(shard.sha256()) == 0) Violation("a shard is not durable");
        artifact_ += shard.sha256();
      }
      return;
    }
    case 5:
      if (!core_->BeginRename(now(), assembly_->job)) {
        assembly_.reset();
        return;
      }
      ++renames_;
      return;
    case 6: {
      AssembleResult result{"/out", "digest", 100, 3.5};
      const absl::Status finished = core_->FinishAssemble(now(), assembly_->job, result);
      if (!finished.ok()) Violation(finished.ToString());
      assembly_.reset();
      return;
    }
    default:
      return;
  }
}

}  // namespace gradq
