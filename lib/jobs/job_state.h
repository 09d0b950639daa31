#pragma once

// A job in memory: its stored records, the edges between its tasks, and where its streams live.
// Only the records are durable; streams and statistics are facts about live workers and start empty
// after a restart. Plain data: the rules are in task_graph, lineage, scheduler.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "gradq/v1/store.pb.h"
#include "lib/catalog/program.h"

namespace gradq {

// A lane on a live worker. Lost, revoked and freed lanes are simply absent.
struct Stream {
  int64_t attempt = 0;
  std::string session;
  bool complete = false;
};

// An input as a running attempt was told it in its lease.
struct InputBinding {
  int task = -1;  // -1: the task has no such input
  int64_t attempt = 0;
};

struct TaskState {
  v1::TaskRecord record;

  // Edges, fixed by the plan. Tasks whose "out" this one reads, -1: none.
  int round = 0;
  int activations = -1;
  int gradients = -1;
  std::vector<int> readers;  // tasks that read this one's "out"; empty: it makes none
  std::vector<int> linears;  // RunStage: those of the stage; ScoreLinear, SolveLinear: its one
  bool accumulates = false;
  // ScoreLinear, SolveLinear: the round whose statistics it reads; -1: none.
  int statistics_round = -1;

  // Of the running attempt.
  InputBinding activations_bound;
  InputBinding gradients_bound;
  std::vector<int> accumulating;

  std::optional<Stream> out;
  // Names of workers that failed it; skipped while others exist.
  std::set<std::string> avoid;

  const v1::Task& task() const { return record.task(); }
  v1::Task& task() { return *record.mutable_task(); }
  bool running() const { return task().state() == v1::Task::RUNNING; }
  bool succeeded() const { return task().state() == v1::Task::SUCCEEDED; }
  bool is_stage() const { return task().spec().has_run_stage(); }
  bool is_score() const { return task().spec().has_score_linear(); }
  bool is_solve() const { return task().spec().has_solve_linear(); }
};

// A linear in one round. Tasks: -1 where the round has none.
struct LinearRound {
  int producer = -1;  // RunStage task that makes its statistics
  int score = -1;
  int solve = -1;
  std::optional<Stream> statistic;
};

struct LinearState {
  std::string name;
  int block = 0;
  int stage = 0;
  double cost = 0;  // rough price of its solve, for the order
  std::vector<LinearRound> rounds;
};

struct RoundState {
  Round plan;
  int decide = -1;  // task; -1: nothing is decided
  int loss = -1;    // the RunStage task that computes the loss of its nodes; -1: none does
  int choice = -1;  // the round that decides which variant of this one's shards is taken
  // Barriers, derived from durable results (UpdateBarriers). The shards its weights come from and
  // the choice among them are there: its stages and scores may run.
  bool may_pass = false;
  // And what its solves follow is decided.
  bool may_solve = false;
};

struct JobState {
  v1::JobRecord record;
  std::vector<TaskState> tasks;
  std::vector<LinearState> linears;  // blocks in order, kinds in enum order
  std::vector<RoundState> rounds;
  int final_round = 0;                                 // whose shards become the artifact
  Recipe recipe;                                       // resolved
  std::map<std::string, int, std::less<>> task_index;  // by full task name
  // RunStage tasks, producers before their readers.
  std::vector<int> stage_order;
  int assemble = -1;
  int validate = -1;

  // Sessions that got a lease of the job: they may hold something of it.
  std::set<std::string> sessions;
  absl::Duration validate_pending_since = absl::ZeroDuration();

  const v1::Job& job() const { return record.job(); }
  v1::Job& job() { return *record.mutable_job(); }
  const std::string& name() const { return record.job().name(); }
  // All linears of the round have durable shards.
  bool Solved(int round) const;
  // The round's decision is durable, or it has none.
  bool Decided(int round) const;
  // Of the linear's shards of a round (all its variants must be decided or single).
  int ChosenVariant(int round, int linear) const;
  const v1::ShardSummary& ChosenShard(int round, int linear) const;
};

// Recomputes may_pass and may_solve of all rounds.
void UpdateBarriers(JobState* job);
// What must be durable before the task may start is.
bool MayStart(const JobState& job, const TaskState& task);

// SUCCEEDED, FAILED or CANCELLED.
bool IsTerminal(v1::Job::State state);

// The service is assembling the artifact.
bool Assembles(const JobState& job);

// Of the tasks of this job: "jobs/1/tasks/x" -> "x".
std::string_view LastPart(std::string_view name);

// The address of a lane of an attempt of a RunStage task.
v1::StreamName StreamNameOf(const JobState& job, const TaskState& task, int64_t attempt,
                            std::string_view lane);
std::string StatisticLane(const LinearState& linear);

}  // namespace gradq
