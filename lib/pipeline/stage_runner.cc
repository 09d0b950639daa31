#include "lib/pipeline/stage_runner.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "lib/base/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/pipeline/prefetch_reader.h"
#include "lib/pipeline/tensors.h"
#include "lib/statistics/statistic.h"
#include "lib/transformer/stage.h"

namespace gradq {

struct LoadedStage::Impl {
  ModelGeometry geometry;
  at::Device device = at::kCPU;
  std::unique_ptr<Stage> stage;
};

namespace {

absl::StatusOr<at::ScalarType> ParseComputeDtype(const std::string& name) {
  if (name.empty() || name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  return absl::InvalidArgumentError(StrCat("compute dtype not known: ", name));
}

// Statistics of the observed linears of one task.
class Accumulators {
 public:
  absl::Status Add(const ModelGeometry& geometry, const StageTask& task, const LinearSet& of_stage,
                   at::Device device, ThreadPool* pool) {
    if (task.accumulate.empty()) return absl::OkStatus();
    for (const auto& [block, kind] : of_stage) {
      const LinearShape shape = LinearOf(geometry, block, kind);
      if (!task.linears.empty() &&
          std::find(task.linears.begin(), task.linears.end(), shape.name) == task.linears.end()) {
        continue;
      }
      Linear linear;
      linear.name = shape.name;
      for (const std::string& name : task.accumulate) {
        GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<Statistic> statistic,
                               MakeStatistic(name, {.out_features = shape.out_features,
                                                    .in_features = shape.in_features,
                                                    .groups = task.groups,
                                                    .device = device,
                                                    .pool = pool,
                                                    .gradient_sequences = task.gradient_sequences,
                                                    .gradient_absolute = task.gradient_absolute}));
        linear.statistics.push_back(std::move(statistic));
      }
      wanted_.insert({block, kind});
      linears_.emplace(std::pair(block, kind), std::move(linear));
    }
    if (!task.linears.empty() && linears_.size() != task.linears.size()) {
      return absl::InvalidArgumentError(
          StrCat("linears to observe are not all of this stage: ", task.linears.size(), " asked, ",
                 linears_.size(), " found"));
    }
    return absl::OkStatus();
  }

  absl::Status OpenLanes(const StageEnds& ends) {
    for (auto& [key, linear] : linears_) {
      GRADQ_ASSIGN_OR_RETURN(linear.lane, ends.open(StatisticLane(linear.name)));
    }
    return absl::OkStatus();
  }

  void BeginNode(double coefficient) {
    for (auto& [key, linear] : linears_) {
      for (const std::unique_ptr<Statistic>& statistic : linear.statistics) {
        statistic->BeginNode(coefficient);
      }
    }
  }

  void Observe(const Observation& observation) {
    Linear& linear = linears_.at({observation.block, observation.kind});
    for (const std::unique_ptr<Statistic>& statistic : linear.statistics) {
      statistic->Accumulate(observation.x, observation.dz, observation.sequences);
    }
  }

  // One chunk per tensor; a linear's sums are dropped as soon as they are in its stream.
  absl::Status Publish() {
    for (auto& [key, linear] : linears_) {
      for (std::unique_ptr<Statistic>& statistic : linear.statistics) {
        for (StatisticTensor& tensor : statistic->Finish()) {
          Chunk chunk;
          chunk.tensors.push_back(ToHost(tensor.name, tensor.value));
          tensor.value.reset();
          GRADQ_RETURN_IF_ERROR(linear.lane->Append(std::move(chunk)).status());
        }
        statistic.reset();
      }
      GRADQ_RETURN_IF_ERROR(linear.lane->Complete());
    }
    return absl::OkStatus();
  }

  const LinearSet& wanted() const { return wanted_; }

 private:
  struct Linear {
    std::string name;
    std::vector<std::unique_ptr<Statistic>> statistics;
    std::unique_ptr<ChunkWriter> lane;
  };
  LinearSet wanted_;
  std::map<std::pair<int, LinearKind>, Linear> linears_;
};

// The next chunk of a neighbour's stream as a tensor of the shape that must come.
absl::StatusOr<at::Tensor> NextInput(ChunkReader& reader, std::string_view name,
                                     const std::vector<int64_t>& shape) {
  absl::StatusOr<Chunk> chunk = reader.Next();
  if (absl::IsOutOfRange(chunk.status())) {
    return absl::DataLossError(StrCat("input stream is shorter than the job: ", name));
  }
  GRADQ_RETURN_IF_ERROR(chunk.status());
  GRADQ_ASSIGN_OR_RETURN(at::Tensor tensor, FindTensor(*chunk, name));
  if (tensor.scalar_type() != at::kFloat || tensor.sizes() != at::IntArrayRef(shape)) {
    return absl::DataLossError(StrCat("input chunk of the wrong shape: ", name));
  }
  return tensor;
}

// Nodes that a task goes through.
int64_t VisitedNodes(const StageTask& task, bool last) {
  if (!task.backward || last) return static_cast<int64_t>(task.coefficients.size());
  return std::count_if(task.coefficients.begin(), task.coefficients.end(),
                       [](double coefficient) { return coefficient != 0; });
}

// One task in progress.
class Run {
 public:
  Run(const StageOfNode& stages, const StageTask& task, const StageEnds& ends)
      : stages_(stages), task_(task), ends_(ends) {
    if (ends.activations != nullptr) {
      activations_ = std::make_unique<PrefetchReader>(ends.activations, ends.cancelled);
    }
    if (ends.gradients != nullptr) {
      gradients_ = std::make_unique<PrefetchReader>(ends.gradients, ends.cancelled);
    }
  }

  absl::StatusOr<StageResult> Execute(ThreadPool* pool) {
    GRADQ_RETURN_IF_ERROR(LoadNode(0));
    GRADQ_RETURN_IF_ERROR(Check());
    GRADQ_RETURN_IF_ERROR(
        accumulators_.Add(stage_->geometry, task_, stage_->stage->linears(), stage_->device, pool));
    GRADQ_ASSIGN_OR_RETURN(output_, ends_.open(std::string(kOutputLane)));
    GRADQ_RETURN_IF_ERROR(accumulators_.OpenLanes(ends_));
    const int64_t nodes = VisitedNodes(task_, last());
    for (int64_t node = 0; node < nodes; ++node) {
      if (node > 0) GRADQ_RETURN_IF_ERROR(LoadNode(static_cast<int>(node)));
      GRADQ_RETURN_IF_ERROR(RunNode(task_.coefficients[node]));
    }
    GRADQ_RETURN_IF_ERROR(output_->Complete());
    const absl::Duration started = Clock::Real().Monotonic();
    GRADQ_RETURN_IF_ERROR(accumulators_.Publish());
    Count(started);
    return result_;
  }

 private:
  bool first() const { return stage_->stage->is_first(); }
  bool last() const { return stage_->stage->is_last(); }
  bool uses_tokens() const { return first() || (last() && (task_.backward || task_.loss)); }

  absl::Status LoadNode(int node) {
    GRADQ_RETURN_IF_ERROR(Stopped());
    GRADQ_ASSIGN_OR_RETURN(LoadedStage* const loaded, stages_(node));
    stage_ = &loaded->impl();
    return absl::OkStatus();
  }

  absl::Status Check() const {
    if (task_.sequences <= 0 || task_.length <= 0 || task_.chunk_sequences <= 0 ||
        task_.first_sequence < 0) {
      return absl::InvalidArgumentError(StrCat("calibration set is empty: ", task_.first_sequence,
                                               " + ", task_.sequences, " x ", task_.length, ", ",
                                               task_.chunk_sequences));
    }
    if (!std::is_partitioned(task_.coefficients.begin(), task_.coefficients.end(),
                             [](double coefficient) { return coefficient != 0; })) {
      return absl::InvalidArgumentError("nodes without gradients are not the last ones");
    }
    const int64_t tokens = static_cast<int64_t>(ends_.tokens.size());
    if (uses_tokens() && (tokens % task_.length != 0 ||
                          tokens / task_.length < task_.first_sequence + task_.sequences)) {
      return absl::InvalidArgumentError(StrCat("number of calibration tokens is wrong: ", tokens,
                                               " for ", task_.first_sequence + task_.sequences,
                                               " x ", task_.length));
    }
    if (!first() && ends_.activations == nullptr) {
      return absl::InvalidArgumentError("stage has no activations to read");
    }
    if (task_.backward && !last() && ends_.gradients == nullptr) {
      return absl::InvalidArgumentError("stage has no gradients to read");
    }
    return absl::OkStatus();
  }

  absl::Status Stopped() const {
    if (ends_.cancelled == nullptr || !ends_.cancelled()) return absl::OkStatus();
    return absl::CancelledError("stage was stopped");
  }

  void Count(absl::Duration started) {
    result_.compute_seconds += absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
  }

  absl::Status RunNode(double coefficient) {
    accumulators_.BeginNode(coefficient);
    loss_sum_ = 0;
    for (int64_t first = 0; first < task_.sequences; first += task_.chunk_sequences) {
      GRADQ_RETURN_IF_ERROR(Stopped());
      GRADQ_RETURN_IF_ERROR(RunChunk(task_.first_sequence + first,
                                     std::min(task_.chunk_sequences, task_.sequences - first),
                                     coefficient != 0));
      if (ends_.progress != nullptr) ends_.progress(++chunks_done_, digest_);
    }
    if (!task_.loss || !last()) return absl::OkStatus();
    if (!std::isfinite(loss_sum_)) {
      return absl::InvalidArgumentError(StrCat("calibration loss is not finite: ", loss_sum_));
    }
    result_.node_loss_sum.push_back(loss_sum_);
    result_.loss_tokens = task_.sequences * (task_.length - 1);
    return absl::OkStatus();
  }

  absl::Status RunChunk(int64_t first_sequence, int64_t sequences, bool counts) {
    const std::vector<int64_t> shape = {sequences, task_.length, stage_->geometry.hidden_size};
    at::Tensor tokens, input, gradient;
    if (uses_tokens()) {
      void* data = const_cast<int32_t*>(ends_.tokens.data() + first_sequence * task_.length);
      tokens = at::from_blob(data, {sequences, task_.length}, at::TensorOptions().dtype(at::kInt));
    }
    if (first()) {
      input = tokens;
    } else {
      GRADQ_ASSIGN_OR_RETURN(input, NextInput(*activations_, "x", shape));
    }
    if (task_.backward && !last()) {
      GRADQ_ASSIGN_OR_RETURN(gradient, NextInput(*gradients_, "dz", shape));
    }
    const absl::Duration started = Clock::Real().Monotonic();
    const Observer observer = [this](const Observation& seen) { accumulators_.Observe(seen); };
    Chunk out;
    if (task_.backward && counts) {
      const Stage::Gradients gradients =
          stage_->stage->ForwardBackward(input, gradient, tokens, accumulators_.wanted(), observer);
      loss_sum_ += gradients.loss_sum;
      if (!first()) out.tensors.push_back(ToHost("dz", gradients.dx));
    } else {
      const at::Tensor x =
          stage_->stage->Forward(input, counts ? accumulators_.wanted() : LinearSet(), observer);
      if (task_.loss && last()) loss_sum_ += stage_->stage->LossSum(x, tokens);
      if (!last()) out.tensors.push_back(ToHost("x", x));
    }
    Count(started);
    // The ends of the model have no neighbour that would read.
    if (out.tensors.empty()) return absl::OkStatus();
    GRADQ_ASSIGN_OR_RETURN(digest_, output_->Append(std::move(out)));
    return absl::OkStatus();
  }

  const StageOfNode& stages_;
  LoadedStage::Impl* stage_ = nullptr;  // of the present node
  const StageTask& task_;
  const StageEnds& ends_;
  std::unique_ptr<PrefetchReader> activations_;
  std::unique_ptr<PrefetchReader> gradients_;
  Accumulators accumulators_;
  std::unique_ptr<ChunkWriter> output_;
  int chunks_done_ = 0;
  std::string digest_;
  double loss_sum_ = 0;  // of the present node
  StageResult result_;
};

}  // namespace

LoadedStage::LoadedStage(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadedStage::~LoadedStage() = default;

absl::StatusOr<std::unique_ptr<LoadedStage>> LoadedStage::Load(const WeightSource& weights,
                                                               const StageRange& range,
                                                               const StageSetup& setup) {
  GRADQ_RETURN_IF_ERROR(CheckDevice(setup.device));
  GRADQ_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(setup.compute_dtype));
  const ModelGeometry& geometry = weights.geometry();
  if (range.first_block < 0 || range.first_block >= range.end_block ||
      range.end_block > geometry.blocks) {
    return absl::InvalidArgumentError(StrCat("blocks of a stage out of range: ", range.first_block,
                                             "..", range.end_block, " of ", geometry.blocks));
  }
  auto impl = std::make_unique<Impl>();
  GRADQ_RETURN_IF_ERROR(
      CatchTorch(StrCat("load blocks ", range.first_block, "..", range.end_block), [&] {
        impl->geometry = geometry;
        impl->device = at::Device(setup.device);
        auto stage = Stage::Load(weights.tensors(), geometry,
                                 {.first_block = range.first_block,
                                  .end_block = range.end_block,
                                  .device = impl->device,
                                  .compute_dtype = dtype,
                                  .recompute = setup.recompute});
        if (stage.ok()) impl->stage = *std::move(stage);
        return stage.status();
      }));
  return std::unique_ptr<LoadedStage>(new LoadedStage(std::move(impl)));
}

int64_t ChunksOf(const StageTask& task, bool last) {
  return VisitedNodes(task, last) *
         ((task.sequences + task.chunk_sequences - 1) / task.chunk_sequences);
}

absl::StatusOr<StageResult> RunStage(const StageOfNode& stages, const StageTask& task,
                                     const StageEnds& ends, ThreadPool* pool) {
  StageResult result;
  GRADQ_RETURN_IF_ERROR(CatchTorch("run stage", [&]() -> absl::Status {
    Run run(stages, task, ends);
    GRADQ_ASSIGN_OR_RETURN(result, run.Execute(pool));
    return absl::OkStatus();
  }));
  return result;
}

absl::StatusOr<StageResult> RunStage(LoadedStage& stage, const StageTask& task,
                                     const StageEnds& ends, ThreadPool* pool) {
  return RunStage([&](int) { return &stage; }, task, ends, pool);
}

absl::Status CheckDevice(const std::string& device) {
  if (device == "cpu") return absl::OkStatus();
  at::Device parsed = at::kCPU;
  try {
    parsed = at::Device(device);
  } catch (const std::exception&) {
    return absl::InvalidArgumentError(StrCat("not a device (cpu, cuda:0): ", device));
  }
  if (!parsed.is_cuda()) {
    return absl::InvalidArgumentError(StrCat("device kind not supported (cpu, cuda:0): ", device));
  }
  // libtorch registers CUDA when its library is loaded; binaries link only the CPU part.
  if (!at::globalContext().hasCUDA()) dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (!at::globalContext().hasCUDA()) {
    return absl::FailedPreconditionError(
        StrCat("no CUDA device or no CUDA libraries on this machine: ", device));
  }
  const int count = at::detail::getCUDAHooks().deviceCount();
  if (parsed.index() >= count) {
    return absl::FailedPreconditionError(
        StrCat("no such CUDA device: ", device, ", this machine has ", count));
  }
  return absl::OkStatus();
}

}  // namespace gradq
