#include "lib/format/checkpoint.h"

#include <cmath>
#include <cstring>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/format/packing.h"
#include "lib/format/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/format/temporary_folder.h"

namespace gradq {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A safetensors file taken apart, to be changed and put together again.
struct Parts {
  std::vector<TensorInfo> infos;
  std::map<std::string, std::string> data;

  static Parts Of(const std::string& bytes) {
    Parts parts;
    const auto header = ParseSafetensors(bytes, "fixture");
    EXPECT_TRUE(header.ok()) << header.status();
    for (const PlacedTensor& tensor : header->tensors) {
      parts.infos.push_back(tensor.info);
      parts.data[tensor.info.name] = bytes.substr(tensor.offset, tensor.info.bytes);
    }
    return parts;
  }
  TensorInfo& Info(const std::string& name) {
    for (TensorInfo& info : infos) {
      if (info.name == name) return info;
    }
    ADD_FAILURE() << name;
    return infos.front();
  }
  std::string Bytes() const {
    std::string bytes = SafetensorsPrefix(infos, {});
    for (const TensorInfo& info : infos) bytes += data.at(info.name);
    return bytes;
  }
};

absl::Status Opened(const TemporaryFolder& folder) {
  return Checkpoint::Open(folder.Open()).status();
}

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() { folder_.CopyFixture("tiny-llama"); }
  Parts Weights() { return Parts::Of(folder_.Read("model.safetensors")); }
  std::string Refused() {
    const absl::Status status = Opened(folder_);
    EXPECT_THAT(status.code(), ::testing::AnyOf(absl::StatusCode::kInvalidArgument,
                                                absl::StatusCode::kFailedPrecondition))
        << status;
    return std::string(status.message());
  }
  TemporaryFolder folder_;
};

TEST_F(CheckpointTest, ReadsFixtures) {
  for (const char* name : {"tiny-llama", "docs-llama-6m"}) {
    const auto checkpoint =
        Checkpoint::Open(*OpenLocalFolder(std::string(GRADQ_FIXTURES) + "/" + name));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_FALSE((*checkpoint)->quantized());
    EXPECT_EQ((*checkpoint)->weight_files(), std::vector<std::string>{"model.safetensors"});
    for (const TensorShape& tensor : TensorsOf((*checkpoint)->geometry()))
      EXPECT_EQ((*checkpoint)->Find(tensor.name)->shape, tensor.shape);
    EXPECT_TRUE(CheckFinite(**checkpoint).ok());
  }
}

TEST_F(CheckpointTest, ConvertsBf16Exactly) {
  const auto checkpoint = Checkpoint::Open(folder_.Open());
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const auto values = (*checkpoint)->ReadFloat32(name);
  ASSERT_TRUE(values.ok()) << values.status();
  const std::string raw = Weights().data[name];
  ASSERT_EQ(values->size() * 2, raw.size());
  for (size_t i = 0; i < values->size(); ++i) {
    uint32_t expected = 0;
    std::memcpy(reinterpret_cast<char*>(&expected) + 2, raw.data() + 2 * i, 2);
    uint32_t bits = 0;
    std::memcpy(&bits, &(*values)[i], 4);
    ASSERT_EQ(bits, expected);
  }
}

TEST_F(CheckpointTest, ReadsF16AndF32) {
  Parts parts = Weights();
  const auto before = (*Checkpoint::Open(folder_.Open()))->ReadFloat32("model.norm.weight");
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    TensorInfo& info = parts.Info("model.norm.weight");
    info.dtype = dtype;
    info.bytes = info.elements() * DTypeSize(dtype);
    std::string& data = parts.data["model.norm.weight"];
    data.clear();
    for (const float value : *before) {
      const uint16_t half = Float16Bits(value);
      data.append(dtype == DType::kF16 ? reinterpret_cast<const char*>(&half)
                                       : reinterpret_cast<const char*>(&value),
                  static_cast<size_t>(DTypeSize(dtype)));
    }
    folder_.Write("model.safetensors", parts.Bytes());
    const auto after = (*Checkpoint::Open(folder_.Open()))->ReadFloat32("model.norm.weight");
    ASSERT_TRUE(after.ok());
    for (size_t i = 0; i < before->size(); ++i)
      EXPECT_NEAR((*after)[i], (*before)[i], std::abs((*before)[i]) * 1e-3);
  }
}

TEST_F(CheckpointTest, ShardedEqualsSingle) {
  const std::string single = folder_.Read("model.safetensors");
  const auto before =
      *(*Checkpoint::Open(folder_.Open()))->ReadFloat32("model.layers.2.mlp.down_proj.weight");
  Parts all = Parts::Of(single), shards[2];
  json map;
  for (size_t i = 0; i < all.infos.size(); ++i) {
    shards[i % 2].infos.push_back(all.infos[i]);
    shards[i % 2].data[all.infos[i].name] = all.data[all.infos[i].name];
    map[all.infos[i].name] = i % 2 == 0 ? "a.safetensors" : "b.safetensors";
  }
  folder_.Remove("model.safetensors");
  folder_.Write("a.safetensors", shards[0].Bytes());
  folder_.Write("b.safetensors", shards[1].Bytes());
  folder_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  const auto checkpoint = Checkpoint::Open(folder_.Open());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->weight_files().size(), 2u);
  EXPECT_EQ(*(*checkpoint)->ReadFloat32("model.layers.2.mlp.down_proj.weight"), before);

  map["model.norm.weight"] = "../model.safetensors";
  folder_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THAT(Refused(), AllOf(HasSubstr("outside the folder"), HasSubstr("../model.safetensors"),
                               HasSubstr("index.json")));
  map["model.norm.weight"] = "/etc/passwd";
  folder_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THAT(Refused(), HasSubstr("/etc/passwd"));
  map["model.norm.weight"] = "c.safetensors";
  folder_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THAT(Refused(), HasSubstr("shard missing: c.safetensors"));
  map["model.norm.weight"] = "a.safetensors";
  map["model.embed_tokens.weight"] = "b.safetensors";
  folder_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THAT(Refused(), HasSubstr("tensor of the index missing"));
  folder_.Write("model.safetensors.index.json",
                R"({"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}})");
  EXPECT_THAT(Refused(), HasSubstr("given twice"));
  for (const char* bad : {"{}", "[]", "{", R"({"weight_map": 3})", R"({"weight_map": {"a": 3}})"}) {
    folder_.Write("model.safetensors.index.json", bad);
    EXPECT_THAT(Refused(), HasSubstr("index.json")) << bad;
  }
}

TEST_F(CheckpointTest, MissingFiles) {
  folder_.Remove("model.safetensors");
  EXPECT_THAT(Refused(), AllOf(HasSubstr("model.safetensors"), HasSubstr(folder_.path())));
  folder_.Remove("config.json");
  EXPECT_THAT(Refused(), HasSubstr("config.json missing"));
  EXPECT_EQ(OpenLocalFolder(folder_.path() + "/nothing").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, BadConfigNamesTheFile) {
  folder_.Write("config.json", "{");
  EXPECT_THAT(Refused(), HasSubstr(folder_.path() + "/config.json"));
  folder_.Write("config.json", R"({"model_type": "gpt2"})");
  const absl::Status status = Opened(folder_);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("gpt2"), HasSubstr("llama"), HasSubstr("config.json")));
}

TEST_F(CheckpointTest, TruncatedWeights) {
  const std::string bytes = folder_.Read("model.safetensors");
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    folder_.Write("model.safetensors", bytes.substr(0, size));
    EXPECT_THAT(Refused(), HasSubstr("model.safetensors")) << size;
  }
}

TEST_F(CheckpointTest, MissingTensorAndWrongShape) {
  const Parts whole = Weights();
  Parts parts = whole;
  std::erase_if(parts.infos, [](const TensorInfo& info) {
    return info.name == "model.layers.1.mlp.up_proj.weight";
  });
  folder_.Write("model.safetensors", parts.Bytes());
  EXPECT_THAT(Refused(), HasSubstr("tensor missing: model.layers.1.mlp.up_proj.weight"));

  parts = whole;
  std::swap(parts.Info("model.layers.0.mlp.up_proj.weight").shape[0],
            parts.Info("model.layers.0.mlp.up_proj.weight").shape[1]);
  folder_.Write("model.safetensors", parts.Bytes());
  EXPECT_THAT(Refused(),
              AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight"), HasSubstr("contradicts"),
                    HasSubstr("[64, 176]"), HasSubstr("[176, 64]")));

  parts = whole;
  parts.Info("model.norm.weight").dtype = DType::kI16;
  folder_.Write("model.safetensors", parts.Bytes());
  EXPECT_THAT(Refused(), AllOf(HasSubstr("model.norm.weight"), HasSubstr("I16")));
}

TEST_F(CheckpointTest, NamesNonFiniteWeights) {
  const Parts whole = Weights();
  for (const uint16_t bits : {uint16_t{0x7f80}, uint16_t{0xff80}, uint16_t{0x7fc1}}) {
    Parts parts = whole;
    std::memcpy(parts.data["model.layers.2.self_attn.o_proj.weight"].data() + 2 * 77, &bits, 2);
    folder_.Write("model.safetensors", parts.Bytes());
    const auto checkpoint = Checkpoint::Open(folder_.Open());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const absl::Status& status :
         {CheckFinite(**checkpoint),
          (*checkpoint)->ReadFloat32("model.layers.2.self_attn.o_proj.weight").status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(
          std::string(status.message()),
          AllOf(HasSubstr("model.layers.2.self_attn.o_proj.weight"), HasSubstr("element 77")));
    }
    EXPECT_TRUE((*checkpoint)->ReadFloat32("model.norm.weight").ok());
  }
}

TEST_F(CheckpointTest, ReadsStayInsideTheTensor) {
  const auto checkpoint = Checkpoint::Open(folder_.Open());
  std::vector<std::byte> out(128);
  EXPECT_TRUE((*checkpoint)->ReadRange("model.norm.weight", 0, out).ok());
  EXPECT_EQ((*checkpoint)->ReadRange("model.norm.weight", 1, out).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*checkpoint)->ReadRange("model.norm.weight", -1, std::span(out).first(1)).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*checkpoint)->ReadRange("nothing", 0, out).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*checkpoint)->Find("nothing").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, RefusesForeignQuantization) {
  json config = json::parse(folder_.Read("config.json"));
  config["quantization_config"] = {{"quant_method", "gptq"}};
  folder_.Write("config.json", config.dump());
  EXPECT_THAT(Refused(), AllOf(HasSubstr("already quantized"), HasSubstr("gptq")));
  config["quantization_config"] = {{"quant_method", "gradq"}};
  folder_.Write("config.json", config.dump());
  const auto checkpoint = Checkpoint::Open(folder_.Open());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->quantized());
}

}  // namespace
}  // namespace gradq
