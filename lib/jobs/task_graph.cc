#include "lib/jobs/task_graph.h"

#include <algorithm>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/plan_messages.h"

namespace gradq {
namespace {

int AddTask(JobState* job, const std::string& id, int round, v1::TaskSpec spec) {
  TaskState task;
  task.task().set_name(StrCat(job->name(), "/tasks/", id));
  *task.task().mutable_spec() = std::move(spec);
  task.task().set_state(v1::Task::PENDING);
  task.round = round;
  const int index = static_cast<int>(job->tasks.size());
  job->task_index[task.task().name()] = index;
  job->tasks.push_back(std::move(task));
  return index;
}

void AddReader(JobState* job, int producer, int reader) {
  job->tasks[producer].readers.push_back(reader);
}

// The stage tasks of one round.
class StageGraph {
 public:
  StageGraph(JobState* job, int round) : job_(job), round_(round), plan_(job->rounds[round].plan) {
    const v1::JobPlan& plan = job->job().plan();
    stages_ = plan.first_block_size();
    chunks_ = static_cast<int>((plan_.sequences + plan.chunk_sequences() - 1) /
                               std::max(1, plan.chunk_sequences()));
    visited_ = static_cast<int>(plan_.nodes.size());
    summed_ =
        static_cast<int>(std::count_if(plan_.nodes.begin(), plan_.nodes.end(),
                                       [](const PathNode& node) { return node.coefficient != 0; }));
  }

  // Returns, per stage, the task that accumulates its statistics; -1: none does.
  std::vector<int> Add() {
    std::vector<int> producers(stages_, -1);
    if (plan_.nodes.empty()) return producers;
    std::vector<int> forward(stages_, -1);
    const bool decides = plan_.decision == RoundDecision::kShrinkage;
    for (int s = 0; s < (plan_.backward ? stages_ - 1 : stages_); ++s) {
      const bool loss = decides && !plan_.backward && s == stages_ - 1;
      forward[s] = AddStage(v1::RunStage::FORWARD, s, !plan_.backward, loss, visited_);
      if (s > 0) ReadActivations(forward[s], forward[s - 1]);
    }
    if (!plan_.backward) return plan_.statistics.empty() ? producers : forward;
    for (int s = stages_ - 1; s >= 0; --s) {
      const bool last = s == stages_ - 1;
      producers[s] = AddStage(v1::RunStage::BACKWARD, s, true, last, last ? visited_ : summed_);
      if (s > 0) ReadActivations(producers[s], forward[s - 1]);
      if (!last) {
        job_->tasks[producers[s]].gradients = producers[s + 1];
        AddReader(job_, producers[s + 1], producers[s]);
      }
    }
    return producers;
  }

 private:
  int AddStage(v1::RunStage::Direction direction, int stage, bool accumulates, bool loss,
               int nodes) {
    v1::TaskSpec spec;
    v1::RunStage& run = *spec.mutable_run_stage();
    run.set_round(round_);
    run.set_stage(stage);
    run.set_direction(direction);
    run.set_loss(loss);
    run.set_chunks(nodes * chunks_);
    if (accumulates) {
      for (const std::string& statistic : plan_.statistics) run.add_accumulate(statistic);
    }
    const char* word = direction == v1::RunStage::FORWARD ? "forward-" : "backward-";
    const int index = AddTask(job_, StrCat(word, round_, "-", stage), round_, std::move(spec));
    job_->tasks[index].accumulates = accumulates && !plan_.statistics.empty();
    if (loss) job_->rounds[round_].loss = index;
    job_->stage_order.push_back(index);
    return index;
  }

  void ReadActivations(int reader, int producer) {
    job_->tasks[reader].activations = producer;
    AddReader(job_, producer, reader);
  }

  JobState* job_;
  const int round_;
  const Round& plan_;
  int stages_ = 0;
  int chunks_ = 0;
  int visited_ = 0;  // nodes, and those of them with gradients or statistics
  int summed_ = 0;
};

void AddLinears(const ModelGeometry& geometry, JobState* job) {
  const v1::JobPlan& plan = job->job().plan();
  for (const LinearShape& shape : LinearsOf(geometry)) {
    LinearState linear;
    linear.name = shape.name;
    linear.block = shape.block;
    while (linear.stage + 1 < plan.first_block_size() &&
           plan.first_block(linear.stage + 1) <= shape.block) {
      ++linear.stage;
    }
    const double in_features = static_cast<double>(shape.in_features);
    linear.cost = static_cast<double>(shape.out_features) * in_features * in_features;
    linear.rounds.resize(job->rounds.size());
    job->linears.push_back(std::move(linear));
  }
}

// "0-q_proj" of "model.layers.0.self_attn.q_proj"
std::string IdOf(const LinearState& linear) {
  return StrCat(linear.block, "-",
                std::string_view(linear.name).substr(linear.name.rfind('.') + 1));
}

void AddLinearTasks(JobState* job, int round, bool score) {
  const Round& plan = job->rounds[round].plan;
  for (size_t l = 0; l < job->linears.size(); ++l) {
    LinearState& linear = job->linears[l];
    v1::TaskSpec spec;
    const auto fill = [&](auto* task) {
      task->set_round(round);
      task->set_block(linear.block);
      task->set_linear(linear.name);
    };
    if (score) {
      fill(spec.mutable_score_linear());
    } else {
      fill(spec.mutable_solve_linear());
    }
    const int index = AddTask(job, StrCat(score ? "score-" : "solve-", round, "-", IdOf(linear)),
                              round, std::move(spec));
    TaskState& task = job->tasks[index];
    task.linears.push_back(static_cast<int>(l));
    const int read = score ? round : plan.statistics_round;
    if (read >= 0 && linear.rounds[read].producer >= 0) task.statistics_round = read;
    (score ? linear.rounds[round].score : linear.rounds[round].solve) = index;
  }
}

void AddDecide(JobState* job, int round) {
  v1::TaskSpec spec;
  spec.mutable_decide()->set_round(round);
  job->rounds[round].decide = AddTask(job, StrCat("decide-", round), round, std::move(spec));
}

void AddRound(JobState* job, int round) {
  const std::vector<int> producers = StageGraph(job, round).Add();
  for (size_t l = 0; l < job->linears.size(); ++l) {
    LinearState& linear = job->linears[l];
    const int producer = producers.empty() ? -1 : producers[linear.stage];
    linear.rounds[round].producer = producer;
    if (producer >= 0) job->tasks[producer].linears.push_back(static_cast<int>(l));
  }
  const Round& plan = job->rounds[round].plan;
  const bool after_solves = plan.decision == RoundDecision::kWidths;
  if (plan.score) AddLinearTasks(job, round, true);
  if (plan.decision != RoundDecision::kNone && !after_solves) AddDecide(job, round);
  if (plan.solve != RoundSolve::kNone) AddLinearTasks(job, round, false);
  if (after_solves) AddDecide(job, round);
}

}  // namespace

absl::Status BuildTaskGraph(const ModelGeometry& geometry, JobState* job) {
  GRADQ_CHECK(job->tasks.empty() && job->job().has_plan());
  GRADQ_ASSIGN_OR_RETURN(job->recipe, RecipeOf(job->job().spec().recipe()));
  const std::vector<Round> program = RoundsOf(job->job().plan());
  if (program.empty()) return absl::InvalidArgumentError("the job's plan has no rounds");
  for (size_t r = 0; r < program.size(); ++r) {
    RoundState& round = job->rounds.emplace_back();
    round.plan = program[r];
    round.choice = VariantDecisionOf(program, static_cast<int>(r));
  }
  job->final_round = FinalRound(program);
  AddLinears(geometry, job);
  for (size_t r = 0; r < job->rounds.size(); ++r) AddRound(job, static_cast<int>(r));
  const int final = static_cast<int>(job->rounds.size()) - 1;
  v1::TaskSpec assemble;
  assemble.mutable_assemble();
  job->assemble = AddTask(job, "assemble", final, std::move(assemble));
  if (!job->job().spec().evaluation_blob().empty()) {
    v1::TaskSpec validate;
    validate.mutable_validate();
    job->validate = AddTask(job, "validate", final, std::move(validate));
  }
  UpdateBarriers(job);
  return absl::OkStatus();
}

}  // namespace gradq
