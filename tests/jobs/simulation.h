#pragma once

// A whole cluster in one thread: the real coordinator core on a memory store, fake workers that
// execute tasks chunk by chunk, a fake transport that loses, delays and repeats calls, and a manual
// clock. Faults come at a numbered call (every one is tried) or from a seed. Whatever the system
// must never do is recorded in violations().

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/jobs/coordinator_core.h"

namespace gradq {

struct SimulationOptions {
  int workers = 1;
  int stages = 1;
  int inference_workers = 0;
  std::string method = "lnq";
  std::string objective = "guided";
  std::map<std::string, std::string> method_options;
  std::string outliers = "none";
  std::map<std::string, std::string> outlier_options;
  std::optional<double> average_bits;
  bool evaluation = false;
  // Workers report just the memory that the plan asks for: one stage's statistics at a time.
  bool small_memory = false;
  // Random mode: shares of calls lost before, lost after, repeated later; chance per step of a
  // death, a stall, a restart.
  std::optional<uint64_t> seed;
  double lose = 0, repeat = 0;
  int deaths = 0, stalls = 0, restarts = 0;
  bool name_lost_inputs = true;
};

enum class FaultKind {
  kNone,
  kDeathBefore,   // the calling worker dies with its call unsent, and is back before its TTL ends
  kDeathAfter,    // ... with the call applied and the answer lost, back after its TTL
  kDeathForGood,  // ... and never back
  kStall,         // it stands still for two TTLs with the call in its hand, then goes on
  kRepeat,        // the call arrives a second time one TTL later
  kRestart,       // the coordinator restarts after the call
  kCancel,        // the job is cancelled after the call
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  int at_call = -1;
};

class Simulation {
 public:
  Simulation(SimulationOptions options, Fault fault);
  ~Simulation();

  // Runs until the job has ended and all is quiet; false when that takes more than `max_steps`.
  bool Run(int max_steps = 20000);

  v1::Job job() const;
  std::vector<v1::Task> tasks() const;
  std::vector<v1::Event> events() const;
  // Numbers of the calls that changed something, and the number of all.
  const std::vector<int>& effective_calls() const { return effective_calls_; }
  int calls() const { return calls_; }
  const std::vector<std::string>& violations() const { return violations_; }
  CoordinatorCore& core() { return *core_; }
  // SolveLinear attempts run by a worker other than the one that held the statistic.
  int pulled_solves() const { return pulled_solves_; }
  // What the artifact was put together from: shard digests in the order of the linears. Digests
  // tell all that a shard follows from, so equal ones mean equal bytes.
  const std::string& artifact() const { return artifact_; }
  // State of job and tasks, for a failing test's message.
  std::string Describe() const;

 private:
  struct Worker;
  struct Assembly {
    std::string job;
    int step = 0;
  };

  Now now() const { return {clock_.Monotonic(), clock_.Wall()}; }
  void Violation(std::string what) { violations_.push_back(std::move(what)); }
  void Open();
  void Step();
  void Act(Worker* worker);
  void Register(Worker* worker);
  void Heartbeat(Worker* worker);
  void Lease(Worker* worker);
  void Work(Worker* worker);
  void WorkOnStage(Worker* worker);
  void WorkOnLinear(Worker* worker);
  void SendFinish(Worker* worker);
  void Obey(Worker* worker, const v1::StreamName& freed);
  // Reads chunk `index`: 1 read, 0 wait, -1 lost.
  int ReadInput(Worker* reader, const v1::StreamLocation& location, int index);
  void Die(Worker* worker, absl::Duration back_after);
  void ForgetProcess(Worker* worker);
  void Assemble();
  // Sends a call through the faulty transport. Nullopt: no answer came.
  template <typename Answer>
  std::optional<Answer> Call(Worker* worker, std::function<Answer()> call);
  void CheckHeld(const Worker& worker);

  SimulationOptions options_;
  Fault fault_;
  ManualClock clock_;
  std::mt19937_64 random_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<CoordinatorCore> core_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::multimap<absl::Duration, std::function<void()>> later_;
  std::optional<Assembly> assembly_;
  std::map<std::string, int64_t> leased_;    // latest attempt handed out, by task
  std::map<std::string, int64_t> accepted_;  // attempt whose success was accepted, by task
  std::set<std::string> shards_;             // durable at the coordinator: digest
  std::string job_;
  int64_t worker_memory_ = 0;
  bool removed_ = false;
  int renames_ = 0;
  int calls_ = 0;
  std::vector<int> effective_calls_;
  int64_t seen_ = -1;  // core_->changed() when the job's state was last looked at
  int turn_ = 0;
  int pulled_solves_ = 0;
  std::string artifact_;
  std::vector<std::string> violations_;
};

}  // namespace gradq
