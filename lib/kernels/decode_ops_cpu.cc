#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/strings.h"
#include "lib/kernels/decode_ops.h"
#include "lib/kernels/float16.h"

namespace gradq::kernels::reference {
namespace {

// Elements of T as floats.
class Input {
 public:
  Input(FloatType type, const void* data) : type_(type), data_(data) {}
  float operator[](int64_t i) const {
    switch (type_) {
      case FloatType::kFloat32:
        return static_cast<const float*>(data_)[i];
      case FloatType::kFloat16:
        return Float16ToFloat(static_cast<const uint16_t*>(data_)[i]);
      case FloatType::kBFloat16:
        return BFloat16ToFloat(static_cast<const uint16_t*>(data_)[i]);
    }
    return 0;
  }

 private:
  FloatType type_;
  const void* data_;
};

class Output {
 public:
  Output(FloatType type, void* data) : type_(type), data_(data) {}
  void Set(int64_t i, float value) const {
    switch (type_) {
      case FloatType::kFloat32:
        static_cast<float*>(data_)[i] = value;
        return;
      case FloatType::kFloat16:
        static_cast<uint16_t*>(data_)[i] = FloatToFloat16(value);
        return;
      case FloatType::kBFloat16:
        static_cast<uint16_t*>(data_)[i] = FloatToBFloat16(value);
        return;
    }
  }

 private:
  FloatType type_;
  void* data_;
};

absl::Status CheckPosition(int32_t position, int64_t capacity) {
  if (position >= 0 && position < capacity) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("position not in the cache: ", position, ", ", capacity));
}

float RmsScale(double squares, int64_t count, float eps) {
  return static_cast<float>(1 / std::sqrt(squares / static_cast<double>(count) + eps));
}

// One head, first through the norm where `norm` is given; result in fp32.
std::vector<float> Rotated(const RotaryAppendArgs& args, const void* x, int64_t head,
                           const void* norm) {
  const Input in(args.type, x);
  std::vector<float> from(args.head_dim);
  for (int64_t i = 0; i < args.head_dim; ++i) from[i] = in[head * args.head_dim + i];
  if (norm != nullptr) {
    const Input weight(args.type, norm);
    double squares = 0;
    for (const float value : from) squares += static_cast<double>(value) * value;
    const float scale = RmsScale(squares, args.head_dim, args.eps);
    for (int64_t i = 0; i < args.head_dim; ++i) from[i] = from[i] * scale * weight[i];
  }
  const float* cos = args.cos + *args.position * args.head_dim;
  const float* sin = args.sin + *args.position * args.head_dim;
  const int64_t half = args.head_dim / 2;
  std::vector<float> to(args.head_dim);
  for (int64_t i = 0; i < half; ++i) {
    to[i] = from[i] * cos[i] - from[i + half] * sin[i];
    to[i + half] = from[i + half] * cos[i + half] + from[i] * sin[i + half];
  }
  return to;
}

}  // namespace

absl::Status EmbedToken(const EmbedTokenArgs& args) {
  const Input embedding(args.type, args.embedding);
  for (int64_t i = 0; i < args.hidden; ++i)
    args.residual[i] = embedding[*args.token * args.hidden + i];
  return absl::OkStatus();
}

absl::Status AddRmsNorm(const AddRmsNormArgs& args) {
  double squares = 0;
  for (int64_t i = 0; i < args.hidden; ++i) {
    if (args.addend != nullptr) args.residual[i] += Input(args.type, args.addend)[i];
    squares += static_cast<double>(args.residual[i]) * args.residual[i];
  }
  const float scale = RmsScale(squares, args.hidden, args.eps);
  const Input weight(args.type, args.weight);
  const Output normed(args.type, args.normed);
  for (int64_t i = 0; i < args.hidden; ++i) normed.Set(i, args.residual[i] * scale * weight[i]);
  return absl::OkStatus();
}

absl::Status RotaryAppend(const RotaryAppendArgs& args) {
  if (absl::Status status = CheckPosition(*args.position, args.capacity); !status.ok())
    return status;
  const Output rotated(args.type, args.rotated), keys(args.type, args.keys),
      values(args.type, args.values);
  for (int64_t head = 0; head < args.heads; ++head) {
    const std::vector<float> q = Rotated(args, args.q, head, args.q_norm);
    for (int64_t i = 0; i < args.head_dim; ++i) rotated.Set(head * args.head_dim + i, q[i]);
  }
  const Input v(args.type, args.v);
  for (int64_t head = 0; head < args.kv_heads; ++head) {
    const std::vector<float> k = Rotated(args, args.k, head, args.k_norm);
    const int64_t row = (head * args.capacity + *args.position) * args.head_dim;
    for (int64_t i = 0; i < args.head_dim; ++i) {
      keys.Set(row + i, k[i]);
      values.Set(row + i, v[head * args.head_dim + i]);
    }
  }
  return absl::OkStatus();
}

absl::Status TokenAttention(const TokenAttentionArgs& args) {
  if (absl::Status status = CheckPosition(*args.position, args.capacity); !status.ok())
    return status;
  const Input q(args.type, args.q), keys(args.type, args.keys), values(args.type, args.values);
  const Output out(args.type, args.out);
  const int64_t end = *args.position + int64_t{1};
  const int64_t begin = args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
  std::vector<double> weights(end - begin);
  for (int64_t head = 0; head < args.heads; ++head) {
    const int64_t cache = head / (args.heads / args.kv_heads) * args.capacity;
    double greatest = -std::numeric_limits<double>::infinity();
    for (int64_t t = begin; t < end; ++t) {
      double score = 0;
      for (int64_t i = 0; i < args.head_dim; ++i)
        score += static_cast<double>(q[head * args.head_dim + i]) *
                 keys[(cache + t) * args.head_dim + i];
      weights[t - begin] = score / std::sqrt(static_cast<double>(args.head_dim));
      greatest = std::max(greatest, weights[t - begin]);
    }
    double total = 0;
    for (double& weight : weights) total += weight = std::exp(weight - greatest);
    for (int64_t i = 0; i < args.head_dim; ++i) {
      double sum = 0;
      for (int64_t t = begin; t < end; ++t)
        sum += weights[t - begin] * values[(cache + t) * args.head_dim + i];
      out.Set(head * args.head_dim + i, static_cast<float>(sum / total));
    }
  }
  return absl::OkStatus();
}

absl::Status SwigluVector(const SwigluArgs& args) {
  const Input gate(args.type, args.gate), up(args.type, args.up);
  const Output out(args.type, args.out);
  for (int64_t i = 0; i < args.count; ++i) out.Set(i, gate[i] / (1 + std::exp(-gate[i])) * up[i]);
  return absl::OkStatus();
}

}  // namespace gradq::kernels::reference
