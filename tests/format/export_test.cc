// Every export read back by something that shares no code with its writer, against the weights the
// artifact stands for.

#include "lib/format/export.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/format/packing.h"
#include "lib/format/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/format/independent_reader.h"
#include "tests/format/random_linear.h"
#include "tests/format/temporary_folder.h"

namespace gradq {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Inputs of 64 and of 1120 columns: a whole chunk of bit planes and a part of one.
constexpr char kConfig[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
  "intermediate_size": 1120, "num_hidden_layers": 1, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 10, "max_position_embeddings": 64,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "attention_dropout": 0.0,
  "tie_word_embeddings": true, "hidden_act": "silu"
}
)";

void WriteModel(const TemporaryFolder& folder) {
  std::vector<TensorInfo> infos;
  std::string data;
  for (const TensorShape& tensor : TensorsOf(*ParseGeometry(kConfig))) {
    TensorInfo info{.name = tensor.name, .dtype = DType::kF16, .shape = tensor.shape};
    info.bytes = 2 * info.elements();
    for (int64_t i = 0; i < info.elements(); ++i) {
      const auto half = Float16Bits(static_cast<float>((i * 37 + 5) % 19) * 0.1f - 0.9f);
      data.append(reinterpret_cast<const char*>(&half), 2);
    }
    infos.push_back(std::move(info));
  }
  folder.Write("model.safetensors", SafetensorsPrefix(infos, {{"format", "pt"}}) + data);
  folder.Write("config.json", kConfig);
  folder.Write("tokenizer.json", "{}");
}

// An artifact with random linears.
struct Made {
  TemporaryFolder original, folder;
  std::map<std::string, QuantizedLinear> linears;
  std::unique_ptr<Artifact> artifact;

  // `change` may alter each linear before it is stored.
  template <typename Change>
  Made(Encoding encoding, int bits, int64_t group_size, const Change& change) {
    WriteModel(original);
    const auto checkpoint = *Checkpoint::Open(original.Open());
    ArtifactInputs inputs;
    inputs.original = checkpoint.get();
    inputs.recipe_json = "{}";
    uint32_t seed = 0;
    for (const LinearShape& shape : LinearsOf(checkpoint->geometry())) {
      linears[shape.name] = RandomLinear(shape.name, encoding, bits, shape.out_features,
                                         shape.in_features, group_size, ++seed);
      change(linears[shape.name]);
    }
    inputs.read_shard = [this](const std::string& name) -> absl::StatusOr<std::string> {
      return SerializeShard(linears.at(name));
    };
    EXPECT_TRUE(WriteArtifact(inputs, folder.path()).ok());
    artifact = *Artifact::Open(folder.Open());
  }
  Made(Encoding encoding, int bits, int64_t group_size)
      : Made(encoding, bits, group_size, [](QuantizedLinear&) {}) {}

  std::string Refusal(std::string_view format) const {
    TemporaryFolder to;
    const absl::Status status = ExportArtifact(*artifact, format, to.path());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_TRUE(to.Open()->List()->empty());
    return std::string(status.message());
  }
};

// What is the same in every export: kept tensors, small files, the rest of config.json.
json CheckFolder(const Made& made, const TemporaryFolder& folder,
                 const independent::Tensors& tensors, const std::string& member) {
  EXPECT_FALSE(PathExists(folder.File("gradq.json")));
  EXPECT_EQ(folder.Read("tokenizer.json"), "{}");
  const independent::Tensors original(made.original.path());
  for (const TensorShape& tensor : DenseTensorsOf(made.artifact->geometry())) {
    EXPECT_EQ(tensors.tensors.at(tensor.name).bytes, original.tensors.at(tensor.name).bytes);
    EXPECT_EQ(tensors.tensors.at(tensor.name).dtype, "F16");
  }
  const std::string text = folder.Read("config.json");
  const std::string kept(kConfig, std::string(kConfig).rfind('}') - 1);
  EXPECT_EQ(text.substr(0, kept.size()), kept);
  json config = json::parse(text);
  const json value = config[member];
  config.erase(member);
  EXPECT_EQ(config, json::parse(kConfig));
  return value;
}

// As numpy would: the bytes of a chunk are put back in order, then each bit plane unpacked, high
// bit first. Thread t of T holds bytes t, T + t, 2T + t and 3T + t of its chunk, the first of them
// the most significant of a little-end word.
std::vector<int> UnpackPlanes(const independent::Tensor& planes, int64_t row) {
  const int64_t bits = planes.shape[0], out = planes.shape[1], words = planes.shape[2];
  std::vector<int> codes(words * 32);
  for (int64_t plane = 0; plane < bits; ++plane) {
    std::vector<uint8_t> bytes(words * 4);
    for (int64_t first = 0; first < words; first += 32) {
      const int64_t threads = std::min<int64_t>(32, words - first);
      for (int64_t t = 0; t < threads; ++t) {
        const int64_t word = planes.Word((plane * out + row) * words + first + t);
        for (int64_t k = 0; k < 4; ++k)
          bytes[first * 4 + k * threads + t] = static_cast<uint8_t>(word >> (8 * (3 - k)));
      }
    }
    for (size_t j = 0; j < codes.size(); ++j)
      codes[j] = codes[j] * 2 + (bytes[j / 8] >> (7 - j % 8) & 1);
  }
  return codes;
}

TEST(ExportTest, AnyPrecisionHoldsTheSameWeights) {
  for (const int bits : {2, 3, 4, 8}) {
    const Made made(Encoding::kLut, bits, 0);
    TemporaryFolder folder;
    const absl::Status status = ExportArtifact(*made.artifact, "any-precision", folder.path());
    ASSERT_TRUE(status.ok()) << status;
    const independent::Tensors read(folder.path());
    const json config = CheckFolder(made, folder, read, "anyprec");
    EXPECT_EQ(config["seed_precision"], bits);
    EXPECT_EQ(config["parent_precision"], bits);
    EXPECT_EQ(config["group_count"], 1);
    EXPECT_EQ(config["arch_config"]["module_names"].size(), 7u);
    EXPECT_EQ(config["arch_config"]["model_name"], "model");
    EXPECT_EQ(config["arch_config"]["layers_name"], "layers");
    for (const auto& [name, linear] : made.linears) {
      const auto& planes = read.tensors.at(name + ".qweight");
      const auto& lut = read.tensors.at(name + ".lut" + std::to_string(bits));
      const int64_t out = linear.out_features, in = linear.in_features;
      ASSERT_EQ(planes.shape, (std::vector<int64_t>{bits, out, in / 32}));
      ASSERT_EQ(lut.shape, (std::vector<int64_t>{out, int64_t{1} << bits}));
      EXPECT_EQ(planes.dtype, "I32");
      EXPECT_EQ(lut.dtype, "F16");
      const std::vector<float> expected = Dequantize(linear);
      for (int64_t r = 0; r < out; ++r) {
        const std::vector<int> codes = UnpackPlanes(planes, r);
        for (int64_t j = 0; j < in; ++j)
          ASSERT_EQ(lut.Half((r << bits) + codes[j]), expected[r * in + j])
              << name << r << "," << j;
      }
      EXPECT_FALSE(read.tensors.contains(name + ".weight"));
    }
  }
}

TEST(ExportTest, CompressedTensorsHoldsTheSameWeights) {
  struct Case {
    int bits;
    int64_t group_size;  // 0: whole rows
  };
  for (const auto& [bits, group_size] : {Case{4, 16}, {8, 32}, {4, 0}, {8, 0}}) {
    const Made made(Encoding::kAffine, bits, group_size == 0 ? 1 : group_size,
                    [&, whole = group_size == 0](QuantizedLinear& linear) {
                      if (!whole) return;
                      linear = RandomLinear(linear.name, Encoding::kAffine, linear.bits,
                                            linear.out_features, linear.in_features,
                                            linear.in_features, 3);
                    });
    TemporaryFolder folder;
    const absl::Status status = ExportArtifact(*made.artifact, "compressed-tensors", folder.path());
    ASSERT_TRUE(status.ok()) << status;
    const independent::Tensors read(folder.path());
    const json config = CheckFolder(made, folder, read, "quantization_config");
    EXPECT_EQ(config["format"], "pack-quantized");
    const json& weights = config["config_groups"]["group_0"]["weights"];
    EXPECT_EQ(weights["num_bits"], bits);
    EXPECT_EQ(weights["strategy"], group_size == 0 ? "channel" : "group");
    EXPECT_EQ(weights["group_size"], group_size == 0 ? json(nullptr) : json(group_size));
    // Packed zero points need it in transformers.
    EXPECT_EQ(config["dequantize"], true);
    const int64_t factor = 32 / bits, mask = (1 << bits) - 1;
    for (const auto& [name, linear] : made.linears) {
      const auto& packed = read.tensors.at(name + ".weight_packed");
      const auto& zeros = read.tensors.at(name + ".weight_zero_point");
      const auto& scale = read.tensors.at(name + ".weight_scale");
      const int64_t out = linear.out_features, in = linear.in_features;
      const int64_t size = group_size == 0 ? in : group_size, groups = in / size;
      ASSERT_EQ(packed.shape, (std::vector<int64_t>{out, in / factor}));
      ASSERT_EQ(zeros.shape, (std::vector<int64_t>{out / factor, groups}));
      ASSERT_EQ(scale.shape, (std::vector<int64_t>{out, groups}));
      const std::vector<float> expected = Dequantize(linear);
      for (int64_t r = 0; r < out; ++r) {
        for (int64_t j = 0; j < in; ++j) {
          const int64_t q = packed.Word(r * in / factor + j / factor) >> (j % factor * bits) & mask;
          const int64_t zero =
              zeros.Word(r / factor * groups + j / size) >> (r % factor * bits) & mask;
          ASSERT_EQ(
              static_cast<float>(q - zero) * static_cast<float>(scale.Half(r * groups + j / size)),
              expected[r * in + j]);
        }
      }
    }
  }
}

TEST(ExportTest, DenseBf16IsTheRoundedModel) {
  for (const Encoding encoding : {Encoding::kLut, Encoding::kAffine}) {
    const Made made(encoding, 3, 48,
                    [](QuantizedLinear& linear) { AddRandomOutliers(&linear, 100, 2); });
    TemporaryFolder folder;
    const absl::Status status =
        ExportArtifact(*made.artifact, "dense-bf16", folder.path(), /*file_limit=*/100000);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(PathExists(folder.File("model.safetensors.index.json")));
    const independent::Tensors tensors(folder.path());
    EXPECT_THAT(CheckFolder(made, folder, tensors, "gradq_fake_quantized").get<std::string>(),
                HasSubstr("quantized"));
    const auto read = Checkpoint::Open(folder.Open());
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_FALSE((*read)->quantized());
    for (const auto& [name, linear] : made.linears) {
      EXPECT_EQ(tensors.tensors.at(name + ".weight").dtype, "BF16");
      const std::vector<float> values = *(*read)->ReadFloat32(name + ".weight");
      const std::vector<float> exact = Dequantize(linear);
      ASSERT_EQ(values.size(), exact.size());
      for (size_t i = 0; i < exact.size(); ++i) {
        int exponent = 0;
        std::frexp(exact[i], &exponent);
        // To nearest of 8 significant bits.
        ASSERT_LE(std::abs(values[i] - exact[i]), std::ldexp(1.0, exponent - 9)) << name << i;
      }
    }
  }
}

TEST(ExportTest, RefusesWhatAFormatCannotHoldAndNamesThoseThatCan) {
  const auto nothing = [](QuantizedLinear&) {};
  const auto outliers = [](QuantizedLinear& linear) { AddRandomOutliers(&linear, 100, 2); };
  const Made lut(Encoding::kLut, 3, 0, nothing), affine(Encoding::kAffine, 4, 16, nothing);
  EXPECT_THAT(lut.Refusal("compressed-tensors"),
              AllOf(HasSubstr("codebooks: model.layers.0.self_attn.q_proj"),
                    HasSubstr("formats that can: any-precision, dense-bf16")));
  EXPECT_THAT(affine.Refusal("any-precision"),
              AllOf(HasSubstr("codebooks only"),
                    HasSubstr("formats that can: compressed-tensors, dense-bf16")));
  EXPECT_THAT(Made(Encoding::kLut, 3, 0, outliers).Refusal("any-precision"),
              AllOf(HasSubstr("no outliers"), Not(HasSubstr("can: compressed"))));
  EXPECT_THAT(Made(Encoding::kAffine, 4, 16, outliers).Refusal("compressed-tensors"),
              AllOf(HasSubstr("no outliers"), HasSubstr("formats that can: dense-bf16")));
  EXPECT_THAT(Made(Encoding::kLut, 1, 0, nothing).Refusal("any-precision"),
              HasSubstr("2 to 8 bits, not 1"));
  EXPECT_THAT(Made(Encoding::kAffine, 3, 16, nothing).Refusal("compressed-tensors"),
              HasSubstr("4 or 8 bits, not 3"));
  EXPECT_THAT(Made(Encoding::kAffine, 4, 48, nothing).Refusal("compressed-tensors"),
              HasSubstr("must divide in-features: 48, 64"));
  const Made mixed(Encoding::kLut, 3, 0, [](QuantizedLinear& linear) {
    if (linear.name.ends_with("down_proj")) {
      linear = RandomLinear(linear.name, Encoding::kLut, 2, linear.out_features, linear.in_features,
                            0, 1);
    }
  });
  EXPECT_THAT(mixed.Refusal("any-precision"),
              AllOf(HasSubstr("not 3 and 2"), HasSubstr("mlp.down_proj")));
  TemporaryFolder folder;
  EXPECT_THAT(std::string(ExportArtifact(*lut.artifact, "any-precise", folder.path()).message()),
              HasSubstr("did you mean any-precision"));
}

TEST(ExportTest, EveryRowHasAWriter) {
  const Made lut(Encoding::kLut, 3, 0), affine(Encoding::kAffine, 8, 32);
  for (const ExportFormatRow& row : ExportFormats()) {
    int held = 0;
    for (const Made* made : {&lut, &affine}) {
      if (!row.refusal(ExportedLinearsOf(*made->artifact)).empty()) continue;
      TemporaryFolder folder;
      const absl::Status status = ExportArtifact(*made->artifact, row.name, folder.path());
      EXPECT_TRUE(status.ok()) << row.name << status;
      EXPECT_TRUE(PathExists(folder.File("config.json"))) << row.name;
      ++held;
    }
    EXPECT_GT(held, 0) << row.name;
  }
}

TEST(ExportTest, InFeaturesThatFillNoWord) {
  std::vector<ExportedLinear> linears = {
      {.name = "l", .bits = 3, .out_features = 64, .in_features = 176}};
  const ExportFormatRow* row = *FindExportFormat(kAnyPrecision);
  EXPECT_THAT(row->refusal(linears), HasSubstr("multiple of 32, not 176"));
  linears[0].in_features = 192;
  EXPECT_EQ(row->refusal(linears), "");
  linears[0].out_features = 66;
  EXPECT_THAT(row->refusal(linears), HasSubstr("multiple of 4, not 66"));
}

}  // namespace
}  // namespace gradq
