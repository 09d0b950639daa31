#include "lib/jobs/task_graph.h"

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

int AddTask(JobState* job, const std::string& id, v1::TaskSpec spec) {
  TaskState task;
  task.task().set_name(StrCat(job->name(), "/tasks/", id));
  *task.task().mutable_spec() = std::move(spec);
  task.task().set_state(v1::Task::PENDING);
  const int index = static_cast<int>(job->tasks.size());
  job->task_index[task.task().name()] = index;
  job->tasks.push_back(std::move(task));
  return index;
}

int AddStage(JobState* job, v1::RunStage::Direction direction, int stage, bool accumulates,
             bool loss) {
  v1::TaskSpec spec;
  v1::RunStage& run = *spec.mutable_run_stage();
  run.set_stage(stage);
  run.set_direction(direction);
  run.set_loss(loss);
  if (accumulates) *run.mutable_accumulate() = job->job().plan().statistics();
  const char* word = direction == v1::RunStage::FORWARD ? "forward-0-" : "backward-0-";
  const int index = AddTask(job, StrCat(word, stage), std::move(spec));
  job->tasks[index].accumulates = accumulates;
  job->stage_order.push_back(index);
  return index;
}

void AddReader(JobState* job, int producer, int reader) {
  job->tasks[producer].readers.push_back(reader);
}

// Returns, per stage, the task that accumulates its statistics.
std::vector<int> AddStages(JobState* job) {
  const v1::JobPlan& plan = job->job().plan();
  const int stages = plan.first_block_size();
  const bool backward = plan.needs_backward();
  std::vector<int> producers(stages, -1);
  if (plan.statistics().empty()) return producers;
  std::vector<int> forward(stages, -1);
  for (int s = 0; s < (backward ? stages - 1 : stages); ++s) {
    forward[s] = AddStage(job, v1::RunStage::FORWARD, s, !backward, false);
    if (s > 0) {
      job->tasks[forward[s]].activations = forward[s - 1];
      AddReader(job, forward[s - 1], forward[s]);
    }
  }
  if (!backward) return forward;
  for (int s = stages - 1; s >= 0; --s) {
    producers[s] = AddStage(job, v1::RunStage::BACKWARD, s, true, s == stages - 1);
    if (s > 0) {
      job->tasks[producers[s]].activations = forward[s - 1];
      AddReader(job, forward[s - 1], producers[s]);
    }
    if (s + 1 < stages) {
      job->tasks[producers[s]].gradients = producers[s + 1];
      AddReader(job, producers[s + 1], producers[s]);
    }
  }
  return producers;
}

}  // namespace

void BuildTaskGraph(const ModelGeometry& geometry, JobState* job) {
  GRADQ_CHECK(job->tasks.empty() && job->job().has_plan());
  const v1::JobPlan& plan = job->job().plan();
  const std::vector<int> producers = AddStages(job);
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
    linear.producer = producers[linear.stage];
    v1::TaskSpec spec;
    spec.mutable_solve_linear()->set_block(shape.block);
    spec.mutable_solve_linear()->set_linear(shape.name);
    const std::string_view kind = std::string_view(shape.name).substr(shape.name.rfind('.') + 1);
    linear.solve = AddTask(job, StrCat("solve-0-", shape.block, "-", kind), std::move(spec));
    const int index = static_cast<int>(job->linears.size());
    job->tasks[linear.solve].linears.push_back(index);
    if (linear.producer >= 0) job->tasks[linear.producer].linears.push_back(index);
    job->linears.push_back(std::move(linear));
  }
  v1::TaskSpec assemble;
  assemble.mutable_assemble();
  job->assemble = AddTask(job, "assemble", std::move(assemble));
  if (!job->job().spec().evaluation_blob().empty()) {
    v1::TaskSpec validate;
    validate.mutable_validate();
    job->validate = AddTask(job, "validate", std::move(validate));
  }
}

}  // namespace gradq
