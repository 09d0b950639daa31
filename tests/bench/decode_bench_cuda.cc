#include "tests/bench/decode_bench_cuda.h"

#include <ATen/ops/empty_ops.h>
#include <ATen/ops/linear_ops.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "absl/functional/function_ref.h"
#include "lib/base/strings.h"
#include "lib/catalog/inference_memory.h"
#include "lib/inference/compute_queue.h"
#include "lib/inference/decode_graph.h"
#include "lib/inference/decode_sequence.h"
#include "lib/inference/decode_step.h"
#include "lib/inference/sampler.h"
#include "lib/inference/torch_status.h"
#include "lib/kernels/decode_ops.h"
#include "tests/bench/decode_model_cuda.h"
#include "tests/bench/product_rows_cuda.h"

namespace gradq {
namespace {

constexpr int kPartRuns = 5;

// Wall time of what `body` enqueues, waited for.
double Seconds(at::Device device, absl::FunctionRef<void()> body) {
  const auto wait = [device] {
    if (device.is_cuda()) ComputeStream(device).synchronize();
  };
  wait();
  const auto begin = std::chrono::steady_clock::now();
  body();
  wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Device work that can be repeated: a graph where there are graphs.
class Recorded {
 public:
  // `times` are launched one behind the other when it is timed.
  Recorded(at::Device device, int times, std::function<void()> enqueue)
      : device_(device), times_(times), enqueue_(std::move(enqueue)) {
    enqueue_();  // once as it is, as DecodeGraph asks
    graph_ = DecodeGraph::Record(device, enqueue_);
  }
  void Run() {
    if (graph_ != nullptr) {
      graph_->Replay();
    } else {
      enqueue_();
    }
  }
  // The mean of them.
  double SecondsPerRun() {
    const double seconds = Seconds(device_, [this] {
      for (int i = 0; i < times_; ++i) Run();
    });
    return seconds / times_;
  }
  double MedianSeconds() {
    std::vector<double> seconds;
    for (int run = 0; run < kPartRuns; ++run) seconds.push_back(SecondsPerRun());
    return Median(std::move(seconds));
  }

 private:
  at::Device device_;
  int times_;
  std::function<void()> enqueue_;
  std::unique_ptr<DecodeGraph> graph_;
};

// Linears that cost nothing: what is left of a step without them.
class SilentLinears : public LinearOp {
 public:
  SilentLinears(const ModelGeometry& geometry, const at::TensorOptions& options) {
    for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
      const int64_t rows = LinearOf(geometry, 0, static_cast<LinearKind>(kind)).out_features;
      results_.push_back(
          at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow({1, 1, rows}),
                                              c10::typeMetaToScalarType(options.dtype()), {},
                                              options.device(), {}, {})
              .fill_(0));
    }
  }
  at::Tensor Apply(int, LinearKind kind, const at::Tensor&) override {
    return results_[static_cast<size_t>(kind)];
  }

 private:
  std::vector<at::Tensor> results_;
};

// One form of the linears with a sequence of its own.
class Variant {
 public:
  Variant(const DecodeFlags& flags, const DecodePlace& place, const ModelEnds& ends,
          std::unique_ptr<LinearOp> linears, DecodeRow row)
      : flags_(flags),
        place_(place),
        ends_(ends),
        linears_(std::move(linears)),
        row_(std::move(row)),
        step_(Weights(*linears_), place.multiprocessors),
        sequence_(ends.geometry, place.type, place.device) {
    row_.context = flags.context;
    row_.head_bytes = static_cast<int64_t>(ends.head.lm_head.nbytes());
    row_.cache_bytes = flags.context * static_cast<int64_t>(CacheBytesPerToken(ends.geometry, 2));
    CachedAttention& attention = sequence_.attention();
    attention.Reserve(flags.context + flags.tokens);
    attention.Advance(flags.context);
    for (int block = 0; block < static_cast<int>(ends.blocks.size()); ++block) {
      attention.cache(block).keys.normal_(0, 1);
      attention.cache(block).values.normal_(0, 1);
    }
    rotary_ = MakeRotaryTable(ends.geometry, attention.capacity(), place.device);
    step_.SetInput(1, flags.context);
    whole_ = std::make_unique<Recorded>(place.device, flags.steps,
                                        [this] { step_.Run(Cache(), rotary_); });
    whole_->Run();
    const at::Tensor first = step_.logits().clone();
    whole_->Run();
    row_.repeatable = first.equal(step_.logits()) && first.isfinite().all().item<bool>();
    Generate();  // the sequence records its step; not counted
  }

  void TimeRound() {
    const double tokens = Seconds(place_.device, [this] { Generate(); });
    token_seconds_.push_back(tokens / static_cast<double>(flags_.tokens));
    step_.SetInput(1, flags_.context);
    step_seconds_.push_back(whole_->SecondsPerRun());
  }

  // The row with its medians, and its parts measured.
  DecodeRow Finish() {
    row_.token_seconds = Median(token_seconds_);
    row_.step_seconds = Median(step_seconds_);
    MeasureParts();
    return row_;
  }

 private:
  DecodeStep::Weights Weights(LinearOp& linears) const {
    return {.geometry = ends_.geometry,
            .embedding = ends_.embedding,
            .head = ends_.head,
            .blocks = ends_.blocks,
            .linears = linears};
  }
  CachedAttention& Cache() { return sequence_.attention(); }

  // flags_.tokens tokens behind the context, as TransformerModel::Decode and generation do it.
  void Generate() {
    Cache().Rewind(flags_.context);
    int32_t token = 1;
    for (int64_t i = 0; i < flags_.tokens; ++i) {
      sequence_.Decode(token, rotary_, &step_);
      const at::Tensor logits = step_.logits().to(at::kCPU);
      token = SampleToken({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())}, {},
                          static_cast<uint64_t>(i));
    }
    Cache().Rewind(flags_.context);
  }

  at::Tensor Input(int64_t columns) const {
    return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow({1, 1, columns}),
                                               place_.type, {}, place_.device, {}, {})
        .normal_(0, 1);
  }

  // Of `enqueue(block)` for all blocks.
  double PartSeconds(const std::function<void(int block)>& enqueue) {
    return Recorded(place_.device, flags_.steps,
                    [this, &enqueue] {
                      for (int block = 0; block < static_cast<int>(ends_.blocks.size()); ++block)
                        enqueue(block);
                    })
        .MedianSeconds();
  }

  void MeasureParts() {
    const at::Tensor x = Input(ends_.geometry.hidden_size);
    const at::Tensor mixed = Input(ends_.geometry.heads * ends_.geometry.head_dim);
    const at::Tensor activated = Input(ends_.geometry.intermediate_size);
    DecodeParts& parts = row_.parts;
    parts.qkv = PartSeconds([&](int block) { linears_->ApplyTogether(block, kQkv, x); });
    parts.o = PartSeconds([&](int block) { linears_->Apply(block, LinearKind::kO, mixed); });
    parts.gate_up = PartSeconds([&](int block) { linears_->ApplyTogether(block, kGateUp, x); });
    parts.down =
        PartSeconds([&](int block) { linears_->Apply(block, LinearKind::kDown, activated); });
    parts.head = Recorded(place_.device, flags_.steps, [&] {
                   at::_ops::linear::call(x, ends_.head.lm_head, {});
                 }).MedianSeconds();
    parts.attention = AttentionSeconds(mixed);
    SilentLinears silent(ends_.geometry, x.options());
    DecodeStep without(Weights(silent), place_.multiprocessors);
    without.SetInput(1, flags_.context);
    Recorded rest(place_.device, flags_.steps, [&] { without.Run(Cache(), rotary_); });
    parts.rest = rest.MedianSeconds() - parts.head - parts.attention;
  }

  double AttentionSeconds(const at::Tensor& q) {
    const ModelGeometry& geometry = ends_.geometry;
    const at::Tensor position = Input(1).to(at::kInt).fill_(flags_.context);
    const at::Tensor out = Input(geometry.heads * geometry.head_dim);
    kernels::TokenAttentionArgs args;
    args.type =
        place_.type == at::kHalf ? kernels::FloatType::kFloat16 : kernels::FloatType::kFloat32;
    args.q = q.const_data_ptr();
    args.position = position.const_data_ptr<int32_t>();
    args.window = geometry.sliding_window;
    args.heads = geometry.heads;
    args.kv_heads = geometry.kv_heads;
    args.head_dim = geometry.head_dim;
    args.capacity = Cache().capacity();
    args.splits =
        kernels::TokenAttentionSplits(geometry.kv_heads, args.capacity, place_.multiprocessors);
    args.out = out.mutable_data_ptr();
    const at::Tensor partial = Input(kernels::TokenAttentionScratch(args) + 1).to(at::kFloat);
    args.partial = partial.mutable_data_ptr<float>();
    return PartSeconds([&](int block) {
      args.keys = Cache().cache(block).keys.const_data_ptr();
      args.values = Cache().cache(block).values.const_data_ptr();
      ThrowIfError(kernels::TokenAttention(ComputeQueue(place_.device), args));
    });
  }

  const DecodeFlags& flags_;
  const DecodePlace& place_;
  const ModelEnds& ends_;
  std::unique_ptr<LinearOp> linears_;
  DecodeRow row_;
  DecodeStep step_;
  DecodeSequence sequence_;
  RotaryTable rotary_;
  std::unique_ptr<Recorded> whole_;
  std::vector<double> token_seconds_;
  std::vector<double> step_seconds_;
};

std::vector<DecodeRow> Measure(const DecodeFlags& flags, const ModelGeometry& geometry,
                               const DecodePlace& place) {
  const ModelEnds ends = MakeModelEnds(geometry, place.type, place.device);
  std::vector<std::unique_ptr<Variant>> variants;
  auto dense = std::make_unique<FusedDenseOp>(geometry, place.type, place.device);
  DecodeRow row;
  row.linears = place.type == at::kHalf ? "dense fp16" : "dense";
  row.linear_bytes = dense->bytes();
  variants.push_back(std::make_unique<Variant>(flags, place, ends, std::move(dense), row));
  for (const int bits : flags.bits) {
    auto packed = MakePackedLinears(ends, bits, flags.outliers, place.pool);
    row.linears = StrCat(bits, " bits");
    if (flags.outliers > 0) row.linears += StrCat(" + ", flags.outliers, " %");
    row.bits = bits;
    row.linear_bytes = packed->bytes();
    variants.push_back(std::make_unique<Variant>(flags, place, ends, std::move(packed), row));
  }
  for (int round = 0; round < flags.rounds; ++round) {
    for (const auto& variant : variants) variant->TimeRound();
  }
  std::vector<DecodeRow> rows;
  for (const auto& variant : variants) rows.push_back(variant->Finish());
  return rows;
}

}  // namespace

absl::StatusOr<std::vector<DecodeRow>> RunDecodeBench(const DecodeFlags& flags,
                                                      const ModelGeometry& geometry,
                                                      const DecodePlace& place) {
  if (flags.context + flags.tokens > geometry.max_positions) {
    return absl::InvalidArgumentError(
        StrCat("context and tokens beyond the model's positions: ", flags.context, " + ",
               flags.tokens, ", ", geometry.max_positions));
  }
  std::vector<DecodeRow> rows;
  const absl::Status status = TorchStatus("decoding", [&] {
    const c10::InferenceMode no_gradients;
    const c10::StreamGuard stream(ComputeStream(place.device));
    rows = Measure(flags, geometry, place);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return rows;
}

}  // namespace gradq
