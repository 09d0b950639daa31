#include "tests/inference/quantized_folder.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", std::string(value.status().message()).c_str());
    std::abort();
  }
  return *std::move(value);
}

QuantizedLinear Round(const std::vector<float>& weights, const LinearShape& shape,
                      const PlainQuantization& quantization) {
  QuantizedLinear linear;
  linear.name = shape.name;
  linear.encoding = quantization.encoding;
  linear.bits = quantization.bits;
  linear.out_features = shape.out_features;
  linear.in_features = shape.in_features;
  linear.record.method = "rtn";
  const bool lut = quantization.encoding == Encoding::kLut;
  const int64_t in = shape.in_features;
  linear.group_size = lut ? 0 : quantization.group_size;
  const int64_t step = lut ? in : quantization.group_size;
  const int top = (1 << quantization.bits) - 1;
  std::vector<uint8_t> codes(weights.size());
  for (int64_t r = 0; r < shape.out_features; ++r) {
    for (int64_t begin = 0; begin < in; begin += step) {
      const int64_t end = std::min(begin + step, in);
      const auto [low, high] =
          std::minmax_element(weights.begin() + r * in + begin, weights.begin() + r * in + end);
      const float scale =
          std::max(Float16Value(Float16Bits((*high - *low) / static_cast<float>(top))), 1e-6f);
      const int zero = std::clamp(static_cast<int>(std::lround(-*low / scale)), 0, top);
      for (int64_t c = begin; c < end; ++c) {
        const float position =
            lut ? (weights[r * in + c] - *low) / scale : weights[r * in + c] / scale + zero;
        codes[r * in + c] =
            static_cast<uint8_t>(std::clamp(static_cast<int>(std::lround(position)), 0, top));
      }
      if (lut) {
        for (int e = 0; e <= top; ++e) linear.lut.push_back(Float16Bits(*low + e * scale));
      } else {
        linear.scale.push_back(Float16Bits(scale));
        linear.zero_point.push_back(static_cast<uint8_t>(zero));
      }
    }
  }
  linear.packed = PackCodes(codes, shape.out_features, in, quantization.bits);
  if (quantization.outliers) {
    std::vector<uint8_t> apart(weights.size());
    for (size_t i = 0; i < apart.size(); i += 200) apart[i] = 1;
    GRADQ_CHECK(SetOutliers(weights, apart, &linear).ok());
  }
  return linear;
}

}  // namespace

std::unique_ptr<ReadableFolder> OpenFolderOrDie(const std::string& path) {
  return ValueOrDie(OpenLocalFolder(path));
}

void WriteQuantizedFolder(const std::string& model, const PlainQuantization& quantization,
                          const std::string& output) {
  const auto checkpoint = ValueOrDie(Checkpoint::Open(OpenFolderOrDie(model)));
  const std::vector<LinearShape> shapes = LinearsOf(checkpoint->geometry());
  ArtifactInputs inputs;
  inputs.original = checkpoint.get();
  inputs.recipe_json = "{}";
  inputs.numerics_class = "test";
  inputs.read_shard = [&](const std::string& name) -> absl::StatusOr<std::string> {
    const auto shape = std::find_if(shapes.begin(), shapes.end(),
                                    [&](const LinearShape& s) { return s.name == name; });
    GRADQ_CHECK(shape != shapes.end());
    return SerializeShard(
        Round(ValueOrDie(checkpoint->ReadFloat32(name + ".weight")), *shape, quantization));
  };
  AtomicFolder folder = ValueOrDie(AtomicFolder::Create(output, false));
  ValueOrDie(WriteArtifact(inputs, folder.staging()));
  GRADQ_CHECK(folder.Commit().ok());
}

TestFolder::TestFolder() {
  char name[] = "/tmp/gradq-test-XXXXXX";
  GRADQ_CHECK(mkdtemp(name) != nullptr);
  path_ = name;
}

TestFolder::~TestFolder() { (void)RemoveRecursively(path_); }

}  // namespace gradq
