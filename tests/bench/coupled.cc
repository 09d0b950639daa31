// The coupled objective beside the guided one on a bundled model: the whole job with a held-out
// choice of the shrinkage, as `gradq quantize --objective coupled` does it, and every shrinkage's
// perplexity on the validation text. Guided has the statistics of all windows.
//
//   build/release/bin/coupled [MODEL [BITS [GROUPS [HOLDOUT [SHRINKAGE,...]]]]]

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/statistics.h"
#include "lib/format/checkpoint.h"
#include "lib/solvers/quantizer.h"
#include "lib/statistics/statistic.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/transformer/numerics.h"
#include "lib/transformer/stage.h"

namespace gradq {
namespace {

constexpr int64_t kSequences = 64;
constexpr int64_t kEvaluated = 96;

// A checkpoint with other weights in the place of some.
class WithWeights : public TensorSource {
 public:
  explicit WithWeights(const Checkpoint& base) : base_(base) {}
  void Set(const std::string& name, std::vector<float> values) {
    values_[name] = std::move(values);
  }

  const std::vector<TensorInfo>& tensors() const override { return base_.tensors(); }
  absl::StatusOr<TensorInfo> Find(std::string_view name) const override {
    absl::StatusOr<TensorInfo> info = base_.Find(name);
    if (info.ok() && values_.contains(std::string(name))) {
      info->dtype = DType::kF32;
      info->bytes = 4 * info->elements();
    }
    return info;
  }
  absl::Status ReadRange(std::string_view name, int64_t offset,
                         std::span<std::byte> out) const override {
    const auto found = values_.find(std::string(name));
    if (found == values_.end()) return base_.ReadRange(name, offset, out);
    std::memcpy(out.data(), reinterpret_cast<const char*>(found->second.data()) + offset,
                out.size());
    return absl::OkStatus();
  }

 private:
  const Checkpoint& base_;
  std::map<std::string, std::vector<float>> values_;
};

struct Inputs {
  std::unique_ptr<Checkpoint> checkpoint;
  int64_t length = 0;
  std::vector<int32_t> calibration, evaluation;
};

absl::StatusOr<Inputs> LoadInputs(const std::string& model) {
  Inputs inputs;
  inputs.length = model == "tiny-llama" ? 256 : 512;
  const std::string path = StrCat(GRADQ_FIXTURES, "/", model);
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenLocalFolder(path));
  GRADQ_ASSIGN_OR_RETURN(inputs.checkpoint, Checkpoint::Open(std::move(folder)));
  GRADQ_ASSIGN_OR_RETURN(const std::string json, ReadFile(path + "/tokenizer.json"));
  GRADQ_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(json));
  const auto windows = [&](const char* file,
                           int64_t count) -> absl::StatusOr<std::vector<int32_t>> {
    GRADQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(StrCat(path, "/", file)));
    GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(text));
    return CutWindows(ids, inputs.length, count, tokenizer->vocab_size());
  };
  GRADQ_ASSIGN_OR_RETURN(inputs.calibration, windows("calibration.txt", kSequences));
  GRADQ_ASSIGN_OR_RETURN(inputs.evaluation, windows("validation.txt", kEvaluated));
  return inputs;
}

at::Tensor Window(std::span<const int32_t> tokens, int64_t window, int64_t length) {
  return at::from_blob(const_cast<int32_t*>(tokens.data() + window * length), {1, length},
                       at::TensorOptions(at::kInt));
}

// Mean loss per predicted token of windows [first, end).
absl::StatusOr<double> Loss(const Inputs& inputs, const TensorSource& source,
                            std::span<const int32_t> tokens, int64_t first, int64_t end) {
  const ModelGeometry& geometry = inputs.checkpoint->geometry();
  GRADQ_ASSIGN_OR_RETURN(
      const auto stage,
      Stage::Load(source, geometry,
                  {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)}));
  double sum = 0;
  for (int64_t window = first; window < end; ++window) {
    const at::Tensor ids = Window(tokens, window, inputs.length);
    sum += stage->LossSum(stage->Forward(ids), ids);
  }
  return sum / static_cast<double>((end - first) * (inputs.length - 1));
}

// Problems of all linears with the statistics of windows [first, end).
absl::StatusOr<std::vector<LayerProblem>> Problems(const Inputs& inputs, int groups, int64_t end,
                                                   ThreadPool* pool) {
  const ModelGeometry& geometry = inputs.checkpoint->geometry();
  GRADQ_ASSIGN_OR_RETURN(
      const auto stage,
      Stage::Load(*inputs.checkpoint, geometry,
                  {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)}));
  const std::vector<std::string_view> names = {kFisherBlocks, kOutputFisher};
  std::map<std::string, std::vector<std::unique_ptr<Statistic>>> statistics;
  for (const LinearShape& shape : LinearsOf(geometry)) {
    for (const std::string_view name : names) {
      GRADQ_ASSIGN_OR_RETURN(
          auto statistic,
          MakeStatistic(name, shape.out_features, shape.in_features, groups, at::kCPU, pool));
      statistics[shape.name].push_back(std::move(statistic));
    }
  }
  for (int64_t window = 0; window < end; ++window) {
    const at::Tensor ids = Window(inputs.calibration, window, inputs.length);
    stage->ForwardBackward(ids, {}, ids, stage->linears(), [&](const Observation& o) {
      for (const auto& statistic : statistics[LinearName(o.block, o.kind)])
        statistic->Accumulate(o.x, o.dz, o.sequences);
    });
  }
  std::vector<LayerProblem> problems;
  for (const LinearShape& shape : LinearsOf(geometry)) {
    LayerProblem problem;
    problem.name = shape.name;
    problem.groups = {shape.out_features, groups};
    GRADQ_ASSIGN_OR_RETURN(std::vector<float> weight,
                           inputs.checkpoint->ReadFloat32(shape.name + ".weight"));
    problem.weight = at::from_blob(weight.data(), {shape.out_features, shape.in_features},
                                   at::TensorOptions(at::kFloat))
                         .clone();
    std::map<std::string, at::Tensor> tensors;
    for (const auto& statistic : statistics[shape.name]) {
      for (StatisticTensor& tensor : statistic->Finish()) tensors[tensor.name] = tensor.value;
    }
    GRADQ_RETURN_IF_ERROR(AttachStatistics(tensors, names, &problem));
    problems.push_back(std::move(problem));
  }
  return problems;
}

struct Solved {
  std::vector<std::vector<QuantizedLinear>> linears;  // by linear, then variant
  double seconds = 0;                                 // of processor time, all threads
  double wall_seconds = 0;
};

double ProcessorSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

absl::StatusOr<Solved> Solve(std::vector<LayerProblem> problems, Objective objective,
                             const std::vector<Variant>& variants, ThreadPool* pool) {
  Solved solved;
  const absl::Duration start = Clock::Real().Monotonic();
  const double processor_start = ProcessorSeconds();
  for (LayerProblem& problem : problems) {
    problem.objective = objective;
    GRADQ_ASSIGN_OR_RETURN(auto linears, SolveVariants("lnq", problem, variants, {pool, {}}));
    solved.linears.push_back(std::move(linears));
  }
  solved.seconds = ProcessorSeconds() - processor_start;
  solved.wall_seconds = absl::ToDoubleSeconds(Clock::Real().Monotonic() - start);
  return solved;
}

struct Measured {
  double perplexity = 0;
  double held_out = 0;  // loss
};

absl::StatusOr<Measured> Measure(const Inputs& inputs, const Solved& solved, size_t variant,
                                 int64_t holdout) {
  WithWeights source(*inputs.checkpoint);
  for (const auto& linears : solved.linears)
    source.Set(linears[variant].name + ".weight", Dequantize(linears[variant]));
  Measured measured;
  GRADQ_ASSIGN_OR_RETURN(const double loss, Loss(inputs, source, inputs.evaluation, 0, kEvaluated));
  measured.perplexity = std::exp(loss);
  GRADQ_ASSIGN_OR_RETURN(measured.held_out, Loss(inputs, source, inputs.calibration,
                                                 kSequences - holdout, kSequences));
  return measured;
}

// Σ over the linears of the coupled objective over that of the start, per linear.
double ObjectiveRatio(const Solved& solved, size_t variant) {
  double sum = 0;
  for (const auto& linears : solved.linears) {
    const auto& numbers = linears[variant].record.numbers;
    if (!numbers.contains("coupled_objective_final")) return 1;
    sum += numbers.at("coupled_objective_final") / numbers.at("coupled_objective_initial");
  }
  return sum / static_cast<double>(solved.linears.size());
}

struct Setup {
  std::string model = "docs-llama-6m";
  int bits = 2;
  int groups = 1;
  int64_t holdout = 4;
  std::vector<double> shrinkages = {0.7, 0.3};
};

absl::Status Run(const Setup& setup, ThreadPool* pool) {
  GRADQ_ASSIGN_OR_RETURN(const Inputs inputs, LoadInputs(setup.model));
  GRADQ_ASSIGN_OR_RETURN(const auto all, Problems(inputs, setup.groups, kSequences, pool));
  GRADQ_ASSIGN_OR_RETURN(const Solved guided,
                         Solve(all, Objective::kGuided, {{setup.bits, 1}}, pool));
  GRADQ_ASSIGN_OR_RETURN(const Measured base, Measure(inputs, guided, 0, setup.holdout));
  std::printf("%s, %d bits, %d groups: guided %.4f, solve %.2f s of processor time, %.2f s\n",
              setup.model.c_str(), setup.bits, setup.groups, base.perplexity, guided.seconds,
              guided.wall_seconds);
  GRADQ_ASSIGN_OR_RETURN(const auto problems,
                         Problems(inputs, setup.groups, kSequences - setup.holdout, pool));
  std::vector<Variant> variants = {{setup.bits, 1}};
  for (const double shrinkage : setup.shrinkages) variants.push_back({setup.bits, shrinkage});
  GRADQ_ASSIGN_OR_RETURN(const Solved solved, Solve(problems, Objective::kCoupled, variants, pool));
  std::printf("coupled, %zu shrinkages: solve %.2f s = %.2f x guided, %.2f s = %.2f x\n",
              variants.size() - 1, solved.seconds, solved.seconds / guided.seconds,
              solved.wall_seconds, solved.wall_seconds / guided.wall_seconds);
  size_t best = 0;
  std::vector<Measured> measured;
  for (size_t i = 0; i < variants.size(); ++i) {
    GRADQ_ASSIGN_OR_RETURN(const Measured one, Measure(inputs, solved, i, setup.holdout));
    measured.push_back(one);
    if (one.held_out < measured[best].held_out) best = i;
    std::printf("  a = %.2f  objective %.4f  held out %.5f  perplexity %.4f  %+.2f %%\n",
                variants[i].shrinkage, ObjectiveRatio(solved, i), one.held_out, one.perplexity,
                100 * (one.perplexity / base.perplexity - 1));
  }
  std::printf("chosen a = %.2f: perplexity %.4f, %+.2f %%\n", variants[best].shrinkage,
              measured[best].perplexity, 100 * (measured[best].perplexity / base.perplexity - 1));
  return absl::OkStatus();
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  GRADQ_CHECK(gradq::SetUpNumerics(threads, "cpu").ok());
  gradq::ThreadPool pool(threads);
  gradq::Setup setup;
  if (argc > 1) setup.model = argv[1];
  if (argc > 2) setup.bits = std::atoi(argv[2]);
  if (argc > 3) setup.groups = std::atoi(argv[3]);
  if (argc > 4) setup.holdout = std::atoi(argv[4]);
  if (argc > 5) {
    setup.shrinkages.clear();
    for (const char* next = argv[5]; *next != '\0';) {
      char* end = nullptr;
      setup.shrinkages.push_back(std::strtod(next, &end));
      next = *end == ',' ? end + 1 : end;
    }
  }
  const absl::Status status = gradq::Run(setup, &pool);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
