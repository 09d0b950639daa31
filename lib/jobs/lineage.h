#pragma once

// What a job still needs, what a lost worker took with it, and what may be freed. Whether a stage
// task is to run is not remembered but derived, from shards that are durable and lanes that are
// alive, after every event; so no order of losses can leave it wrong. Pure functions of a JobState:
// they change it and return what the core must tell workers and the store.

#include <string>
#include <string_view>
#include <vector>

#include "lib/jobs/job_state.h"

namespace gradq {

// An attempt that must stop: an input died under it, or nobody needs it any more.
struct StoppedAttempt {
  int task = -1;
  int64_t attempt = 0;
  std::string session;
  std::string reason;
};

struct FreedLane {
  std::string session;
  v1::StreamName stream;
};

struct SettleResult {
  std::vector<StoppedAttempt> stopped;
  std::vector<FreedLane> freed;
  std::vector<int> reopened;  // SUCCEEDED before, PENDING now
  std::vector<int> changed;   // tasks whose record changed (the above included)
};

// Drops every lane of the session. Returns the tasks it was running (states untouched).
std::vector<int> DropSession(JobState* job, std::string_view session);

// Drops one lane if it is the live one; lane "" drops all of the attempt. Returns what was
// dropped: should its worker be alive after all, it must free it.
std::vector<FreedLane> DropLane(JobState* job, const v1::StreamName& stream);

// Ends a running attempt without a result: the task is PENDING, its stream is gone.
void EndAttempt(JobState* job, int task);

// An attempt of a RunStage task succeeded: its stream is complete, its statistics exist.
void CompleteStage(JobState* job, int task, const std::string& session, SettleResult* result);

// Brings the RunStage tasks of a RUNNING job into the state their consumers ask for.
void Settle(JobState* job, SettleResult* result);

// True while a running attempt may still read its inputs.
bool LacksChunks(const TaskState& task);

// A task that reads this round's statistic of the linear has not succeeded yet.
bool StatisticWanted(const JobState& job, const LinearState& linear, int round);

// Calls use(task index) for each task that reads this round's statistic of the linear.
template <typename Use>
void ForEachReader(const JobState& job, const LinearState& linear, int round, const Use& use) {
  if (linear.rounds[round].producer < 0) return;
  if (linear.rounds[round].score >= 0) use(linear.rounds[round].score);
  for (size_t r = 0; r < job.rounds.size(); ++r) {
    if (job.rounds[r].plan.statistics_round == round && linear.rounds[r].solve >= 0) {
      use(linear.rounds[r].solve);
    }
  }
}

// The loss of the round's nodes is known, or nothing is decided by it.
bool LossKnown(const JobState& job, int round);

// What a running attempt reads, as it was leased and as far as it is alive.
struct LiveInputs {
  const Stream* activations = nullptr;
  const Stream* gradients = nullptr;
  const Stream* statistic = nullptr;
  bool complete = true;  // false: one it needs is gone
};
LiveInputs InputsOf(const JobState& job, const TaskState& task);

// The stage task is running or must run for its statistics or for a reader.
bool WillRead(const TaskState& task);

}  // namespace gradq
