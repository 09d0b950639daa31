#include "lib/jobs/job_state.h"

#include <algorithm>

#include "lib/base/strings.h"

namespace gradq {

bool IsTerminal(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

bool Assembles(const JobState& job) {
  return job.assemble >= 0 && job.tasks[job.assemble].running();
}

bool JobState::Solved(int round) const {
  return std::all_of(linears.begin(), linears.end(), [&](const LinearState& linear) {
    const int solve = linear.rounds[round].solve;
    return solve < 0 || tasks[solve].succeeded();
  });
}

bool JobState::Decided(int round) const {
  const int decide = rounds[round].decide;
  return decide < 0 || tasks[decide].succeeded();
}

int JobState::ChosenVariant(int round, int linear) const {
  const int by = rounds[round].choice;
  if (by < 0) return 0;
  return tasks[rounds[by].decide].task().result().decision().linears(linear).variant();
}

const v1::ShardSummary& JobState::ChosenShard(int round, int linear) const {
  const v1::TaskResult& solved = tasks[linears[linear].rounds[round].solve].task().result();
  return solved.shards(ChosenVariant(round, linear));
}

void UpdateBarriers(JobState* job) {
  for (size_t r = 0; r < job->rounds.size(); ++r) {
    RoundState& round = job->rounds[r];
    const int weights = round.plan.weights_round;
    // Beyond round 0 the base weights are passed once more for what the round before decided.
    round.may_pass = r == 0 || weights >= 0 || job->Decided(static_cast<int>(r) - 1);
    if (weights >= 0) {
      const int choice = job->rounds[weights].choice;
      const bool reads_choice =
          choice >= 0 && std::any_of(round.plan.nodes.begin(), round.plan.nodes.end(),
                                     [](const PathNode& node) { return node.variant < 0; });
      round.may_pass = job->Solved(weights) && (!reads_choice || job->Decided(choice));
    }
    const bool follows = round.plan.decision == RoundDecision::kThreshold ||
                         round.plan.decision == RoundDecision::kShares;
    round.may_solve = round.may_pass && (!follows || job->Decided(static_cast<int>(r)));
  }
}

bool MayStart(const JobState& job, const TaskState& task) {
  const RoundState& round = job.rounds[task.round];
  return task.is_solve() ? round.may_solve : round.may_pass;
}

std::string_view LastPart(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? name : name.substr(slash + 1);
}

v1::StreamName StreamNameOf(const JobState& job, const TaskState& task, int64_t attempt,
                            std::string_view lane) {
  v1::StreamName stream;
  stream.set_job(job.name());
  stream.set_round(task.round);
  stream.set_task(std::string(LastPart(task.task().name())));
  stream.set_attempt(attempt);
  stream.set_lane(std::string(lane));
  return stream;
}

std::string StatisticLane(const LinearState& linear) { return StrCat("stat/", linear.name); }

}  // namespace gradq
