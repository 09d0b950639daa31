#include "lib/format/artifact.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/digest.h"
#include "lib/catalog/plan.h"
#include "lib/format/inspect.h"
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

constexpr char kRecipe[] = R"({"bits":3,"method":"lnq","seed":0.1})";

// A fixture and random shards for all its linears.
struct Job {
  std::unique_ptr<Checkpoint> original;
  std::map<std::string, QuantizedLinear> linears;
  ArtifactInputs inputs;

  Job(const std::string& folder, Encoding encoding, int bits, int64_t group_size) {
    auto opened = Checkpoint::Open(*OpenLocalFolder(folder));
    EXPECT_TRUE(opened.ok()) << opened.status();
    original = *std::move(opened);
    uint32_t seed = 0;
    for (const LinearShape& shape : LinearsOf(original->geometry())) {
      linears[shape.name] = RandomLinear(shape.name, encoding, bits, shape.out_features,
                                         shape.in_features, group_size, ++seed);
    }
    inputs.original = original.get();
    inputs.recipe_json = kRecipe;
    inputs.numerics_class = "test";
    inputs.read_shard = [this](const std::string& name) -> absl::StatusOr<std::string> {
      return SerializeShard(linears.at(name));
    };
  }

  // To every other linear.
  void AddOutliers() {
    uint32_t i = 0;
    for (auto& [name, linear] : linears) {
      if (++i % 2 == 0) AddRandomOutliers(&linear, 200, i);
    }
  }
};

std::string FixturePath(const std::string& name) {
  return std::string(GRADQ_FIXTURES) + "/" + name;
}

struct Case {
  const char* fixture;
  Encoding encoding;
  int bits;
  int64_t group_size;
  int64_t file_limit;
  bool outliers = false;
};
class ArtifactTest : public ::testing::TestWithParam<Case> {};

TEST_P(ArtifactTest, WrittenAndReadBack) {
  const Case& c = GetParam();
  Job job(FixturePath(c.fixture), c.encoding, c.bits, c.group_size);
  job.inputs.file_limit = c.file_limit;
  if (c.outliers) job.AddOutliers();
  TemporaryFolder folder;
  const auto summary = WriteArtifact(job.inputs, folder.path());
  ASSERT_TRUE(summary.ok()) << summary.status();

  const auto artifact = Artifact::Open(folder.Open());
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ((*artifact)->linears().size(), job.linears.size());
  const independent::Artifact independent(folder.path());
  for (const auto& [name, linear] : job.linears) {
    const auto read = (*artifact)->ReadLinear(name);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(SerializeShard(*read), SerializeShard(linear));
    EXPECT_EQ(Dequantize(*read), independent.Weight(name)) << name;
  }
  for (const TensorShape& tensor : DenseTensorsOf(job.original->geometry())) {
    const TensorInfo info = *job.original->Find(tensor.name);
    std::string bytes(info.bytes, 0);
    ASSERT_TRUE(job.original->Read(tensor.name, std::as_writable_bytes(std::span(bytes))).ok());
    EXPECT_EQ(independent.tensors.at(tensor.name).bytes, bytes) << tensor.name;
    EXPECT_EQ((*artifact)->dense().Find(tensor.name)->dtype, info.dtype);
  }
  EXPECT_EQ(independent.tensors.contains("lm_head.weight"),
            !job.original->geometry().tied_embeddings);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_EQ(folder.Read(file), *ReadFile(FixturePath(c.fixture) + "/" + file));
  }
  EXPECT_TRUE(VerifyArtifactFiles(*folder.Open()).ok());

  // Size and digest by their definitions.
  std::string lines;
  int64_t bytes = 0;
  const std::vector<FolderEntry> entries = *folder.Open()->List();
  for (const FolderEntry& entry : entries) {
    lines += entry.name + " " + std::to_string(entry.size) + " " +
             Sha256Hex(folder.Read(entry.name)) + "\n";
    bytes += entry.size;
  }
  EXPECT_EQ(summary->digest, Sha256Hex(lines));
  EXPECT_EQ(summary->bytes, bytes);

  // Written twice: the same bytes.
  TemporaryFolder again;
  EXPECT_EQ(WriteArtifact(job.inputs, again.path())->digest, summary->digest);
}

INSTANTIATE_TEST_SUITE_P(
    All, ArtifactTest,
    ::testing::Values(Case{"tiny-llama", Encoding::kLut, 3, 0, int64_t{4} << 30},
                      Case{"tiny-llama", Encoding::kLut, 1, 0, 20000},
                      Case{"tiny-llama", Encoding::kLut, 8, 0, 1},
                      Case{"tiny-llama", Encoding::kAffine, 3, 48, int64_t{4} << 30},
                      Case{"tiny-llama", Encoding::kAffine, 5, 128, 30000},
                      Case{"docs-llama-6m", Encoding::kLut, 2, 0, int64_t{4} << 30},
                      Case{"tiny-llama", Encoding::kLut, 3, 0, int64_t{4} << 30, true},
                      Case{"tiny-llama", Encoding::kAffine, 4, 16, 20000, true}));

TEST(Artifact, ShardsWhenLarge) {
  Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
  job.inputs.file_limit = 40000;
  TemporaryFolder folder;
  ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
  EXPECT_FALSE(PathExists(folder.File("model.safetensors")));
  const json index = json::parse(folder.Read("model.safetensors.index.json"));
  std::map<std::string, int64_t> sizes;
  int64_t total = 0;
  for (const auto& [name, file] : index["weight_map"].items()) sizes[file.get<std::string>()] = 0;
  for (auto& [file, size] : sizes) {
    EXPECT_THAT(file, ::testing::MatchesRegex("model-0000[1-9]-of-0000[1-9].safetensors"));
    const auto header = ReadSafetensorsHeader(**OpenLocalFile(folder.File(file)), file);
    for (const PlacedTensor& tensor : header->tensors) {
      EXPECT_EQ(index["weight_map"][tensor.info.name], file);
      size += tensor.info.bytes;
    }
    // Only a tensor that is larger alone may pass the limit.
    EXPECT_TRUE(size <= 40000 || header->tensors.size() == 1) << file << size;
    total += size;
  }
  EXPECT_GT(sizes.size(), 2u);
  EXPECT_EQ(index["metadata"]["total_size"], total);
}

TEST(Artifact, ConfigKeepsEveryOtherByte) {
  Job job(FixturePath("docs-llama-6m"), Encoding::kLut, 3, 0);
  TemporaryFolder folder;
  ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
  const std::string text = folder.Read("config.json"),
                    original = *ReadFile(FixturePath("docs-llama-6m") + "/config.json");
  const size_t common = original.rfind('}') - 1;
  EXPECT_EQ(text.substr(0, common), original.substr(0, common));
  json config = json::parse(text);
  EXPECT_EQ(config["quantization_config"],
            (json{{"quant_method", "gradq"}, {"format_version", 1}, {"ignore", {"lm_head"}}}));
  config.erase("quantization_config");
  EXPECT_EQ(config, json::parse(original));
  const auto checkpoint = Checkpoint::Open(folder.Open());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->quantized());
}

TEST(Artifact, AnnouncedAsCompressedTensorsOnlyWhereThatHoldsIt) {
  const auto announced = [](int bits, int64_t group_size, Encoding encoding) {
    Job job(FixturePath("tiny-llama"), encoding, bits, group_size);
    TemporaryFolder folder;
    EXPECT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
    EXPECT_TRUE(Artifact::Open(folder.Open()).ok());
    EXPECT_TRUE((*Checkpoint::Open(folder.Open()))->quantized());
    return json::parse(folder.Read("config.json"))["quantization_config"];
  };
  for (const int bits : {4, 8}) {
    const json config = announced(bits, 16, Encoding::kAffine);
    EXPECT_EQ(config["quant_method"], "compressed-tensors");
    EXPECT_EQ(config["format"], "pack-quantized");
    const json& weights = config["config_groups"]["group_0"]["weights"];
    EXPECT_EQ(weights["num_bits"], bits);
    EXPECT_EQ(weights["group_size"], 16);
    EXPECT_EQ(weights["strategy"], "group");
    EXPECT_EQ(weights["symmetric"], false);
  }
  EXPECT_EQ(announced(3, 16, Encoding::kAffine)["quant_method"], "gradq");
  EXPECT_EQ(announced(4, 48, Encoding::kAffine)["quant_method"], "gradq");
  EXPECT_EQ(announced(4, 0, Encoding::kLut)["quant_method"], "gradq");
}

// A reader of version 1 would leave the outliers out without a word.
TEST(Artifact, OutliersRaiseTheVersion) {
  Job job(FixturePath("tiny-llama"), Encoding::kAffine, 4, 16);
  QuantizedLinear& linear = job.linears.begin()->second;
  AddRandomOutliers(&linear, 100, 1);
  TemporaryFolder folder;
  ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
  const json config = json::parse(folder.Read("config.json"))["quantization_config"];
  EXPECT_EQ(config["quant_method"], "gradq");
  EXPECT_EQ(config["format_version"], 2);
  json root = json::parse(folder.Read("gradq.json"));
  EXPECT_EQ(root["format_version"], 2);
  const auto inspection = InspectArtifact(folder.Open());
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  double stored = 0, weights = 0;
  for (size_t i = 0; i < inspection->linears.size(); ++i) {
    const QuantizedLinear& of = job.linears.at(inspection->linears[i].name);
    EXPECT_EQ(inspection->linears[i].outlier_fraction, of.outlier_fraction());
    EXPECT_EQ(of.outliers.empty(), of.name != linear.name);
    stored += of.average_bits() * static_cast<double>(of.weights());
    weights += static_cast<double>(of.weights());
  }
  EXPECT_DOUBLE_EQ(inspection->average_bits, stored / weights);

  root["format_version"] = 1;
  folder.Write("gradq.json", root.dump());
  EXPECT_THAT(std::string(Artifact::Open(folder.Open()).status().message()),
              HasSubstr("format version 1 has no outliers"));
  root["format_version"] = 2;
  for (json& record : root["linears"]) {
    if (record["name"] == linear.name) record["outlier_fraction"] = 0.5;
  }
  folder.Write("gradq.json", root.dump());
  EXPECT_THAT(std::string(Artifact::Open(folder.Open()).status().message()),
              HasSubstr("contradicts its tensors"));
}

// pack-quantized stores q + 2^(b-1) of signed codes, and zero points the same way along dim 0, 32 /
// b per word.
TEST(Artifact, AffineTensorsAreThoseOfCompressedTensors) {
  const int bits = 4;
  Job job(FixturePath("tiny-llama"), Encoding::kAffine, bits, 16);
  TemporaryFolder folder;
  ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
  const independent::Artifact artifact(folder.path());
  const std::string name = "model.layers.1.mlp.down_proj";
  const auto& packed = artifact.tensors.at(name + ".weight_packed");
  const auto& zeros = artifact.tensors.at(name + ".weight_zero_point");
  const auto& scale = artifact.tensors.at(name + ".weight_scale");
  const int64_t out = 64, in = 176, groups = 11, factor = 32 / bits;
  EXPECT_EQ(packed.shape, (std::vector<int64_t>{out, in / factor}));
  EXPECT_EQ(zeros.shape, (std::vector<int64_t>{out / factor, groups}));
  EXPECT_EQ(scale.shape, (std::vector<int64_t>{out, groups}));
  const std::vector<float> expected = Dequantize(job.linears.at(name));
  for (int64_t r = 0; r < out; ++r) {
    for (int64_t j = 0; j < in; ++j) {
      const int64_t q =
          ((packed.Word(r * in / factor + j / factor) >> (j % factor * bits)) & 15) - 8;
      const int64_t zero =
          ((zeros.Word(r / factor * groups + j / 16) >> (r % factor * bits)) & 15) - 8;
      EXPECT_EQ(static_cast<float>(q - zero) * static_cast<float>(scale.Half(r * groups + j / 16)),
                expected[r * in + j]);
    }
  }
}

TEST(Artifact, PlanKnowsItsSize) {
  for (const char* method : {"lnq", "rtn"}) {
    for (const int bits : {3, 8}) {
      PlanInputs plan;
      plan.recipe.method = method;
      plan.recipe.bits = bits;
      plan.small_files_bytes = 0;
      const Encoding encoding = (*FindQuantizer(method))->encoding;
      Job job(FixturePath("docs-llama-6m"), encoding, bits, 128);
      plan.geometry = job.original->geometry();
      TemporaryFolder folder;
      int64_t weights = 0;
      ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
      const auto header =
          ReadSafetensorsHeader(**OpenLocalFile(folder.File("model.safetensors")), "");
      for (const PlacedTensor& tensor : header->tensors) weights += tensor.info.bytes;
      // The plan adds a kilobyte per linear for gradq.json and the header.
      EXPECT_EQ(MakePlan(plan)->artifact_bytes, weights + 42 * 1024) << method << bits;
    }
  }
}

TEST(Artifact, GradqJsonIsCanonical) {
  Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
  TemporaryFolder folder;
  ASSERT_TRUE(WriteArtifact(job.inputs, folder.path()).ok());
  const std::string text = folder.Read("gradq.json");
  const json root = json::parse(text);
  EXPECT_EQ(root["recipe"], json::parse(kRecipe));
  EXPECT_THAT(text, HasSubstr("\"seed\": 0.1"));
  const size_t records = job.linears.size();
  ASSERT_EQ(root["linears"].size(), records);
  double sum = 0;
  for (const json& record : root["linears"]) {
    const QuantizedLinear& linear = job.linears.at(record["name"]);
    EXPECT_EQ(record["objective_final"].get<double>(), *linear.record.objective_final);
    EXPECT_EQ(record["sha256"], Sha256Hex(SerializeShard(linear)));
    sum += *linear.record.predicted_loss_increase;
  }
  EXPECT_EQ(root["predicted_loss_increase"].get<double>(), sum);
}

TEST(Artifact, Inspection) {
  Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
  job.linears.begin()->second.record.predicted_loss_increase.reset();
  TemporaryFolder folder;
  const auto summary = WriteArtifact(job.inputs, folder.path());
  ASSERT_TRUE(summary.ok());
  folder.Write("report.json", "{}");
  const auto inspection = InspectArtifact(folder.Open());
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_EQ(inspection->bytes, summary->bytes);
  EXPECT_EQ(inspection->average_bits, summary->average_bits);
  EXPECT_FALSE(inspection->predicted_loss_increase.has_value());
  EXPECT_EQ(json::parse(inspection->recipe_json), json::parse(kRecipe));
  const json root = json::parse(InspectionJson(*inspection));
  EXPECT_TRUE(root["predicted_loss_increase"].is_null());
  EXPECT_EQ(root["bytes"], summary->bytes);
  ASSERT_EQ(root["linears"].size(), job.linears.size());
  for (const char* key : {"name", "method", "bits", "objective_initial", "objective_final",
                          "predicted_loss_increase", "outlier_fraction", "numbers", "sha256"}) {
    EXPECT_TRUE(root["linears"][0].contains(key)) << key;
  }
  EXPECT_EQ(root["linears"][0]["name"], "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(root["linears"][0].size(), 9u);
  EXPECT_EQ(root["linears"][0]["numbers"], json({{"iterations_used", 3}}));
}

TEST(Artifact, WriterRefusesShardsOfAnotherModel) {
  Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
  TemporaryFolder folder;
  const std::string name = "model.layers.1.mlp.up_proj";
  const QuantizedLinear good = job.linears[name];
  job.linears[name] = RandomLinear(name, Encoding::kLut, 3, 10, 64, 0, 1);
  EXPECT_THAT(std::string(WriteArtifact(job.inputs, folder.path()).status().message()),
              AllOf(HasSubstr(name), HasSubstr("10 × 64")));
  job.linears[name] = good;
  job.linears[name].name = "model.layers.0.mlp.up_proj";
  EXPECT_FALSE(WriteArtifact(job.inputs, folder.path()).ok());
  EXPECT_TRUE(folder.Open()->List()->empty());  // nothing is written before everything is checked
  job.linears[name] = good;
  job.inputs.read_shard = [](const std::string&) -> absl::StatusOr<std::string> {
    return absl::NotFoundError("gone");
  };
  EXPECT_EQ(WriteArtifact(job.inputs, folder.path()).status().code(), absl::StatusCode::kNotFound);
  job.inputs.recipe_json = "[]";
  EXPECT_EQ(WriteArtifact(job.inputs, folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// On a file system of 64 KiB that only a child process sees. The exit code of the child says what
// came.
int WriteOnFullDisk(const Job& job) {
  constexpr int kCannotMount = 2;
  const std::string point = "/tmp";
  const uid_t user = geteuid();
  const gid_t group = getegid();
  if (unshare(user == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) != 0) return kCannotMount;
  if (user != 0) {
    // Without a mapping nothing can be created: owners would have no number.
    std::ofstream("/proc/self/uid_map") << "0 " << user << " 1";
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/gid_map") << "0 " << group << " 1";
  }
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("tmpfs", point.c_str(), "tmpfs", 0, "size=64k,mode=1777") != 0) {
    return kCannotMount;
  }
  auto folder = AtomicFolder::Create(point + "/out", false);
  if (!folder.ok()) return 3;
  return WriteArtifact(job.inputs, folder->staging()).status().code() ==
                 absl::StatusCode::kResourceExhausted
             ? 0
             : 1;
}

TEST(Artifact, DiskFull) {
  Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(WriteOnFullDisk(job));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "no user namespaces here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

class DamagedArtifact : public ::testing::Test {
 protected:
  DamagedArtifact() {
    Job job(FixturePath("tiny-llama"), Encoding::kLut, 3, 0);
    EXPECT_TRUE(WriteArtifact(job.inputs, folder_.path()).ok());
    root_ = json::parse(folder_.Read("gradq.json"));
  }
  std::string Refused(absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = Artifact::Open(folder_.Open()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
    return std::string(status.message());
  }
  template <typename Change>
  std::string RefusedWith(Change change,
                          absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    json root = root_;
    change(root);
    folder_.Write("gradq.json", root.dump());
    return Refused(code);
  }
  TemporaryFolder folder_;
  json root_;
};

TEST_F(DamagedArtifact, Records) {
  EXPECT_THAT(
      RefusedWith([](json& r) { r["format_version"] = 3; }, absl::StatusCode::kUnimplemented),
      HasSubstr("newer"));
  EXPECT_THAT(RefusedWith([](json& r) { r.erase("format_version"); }), HasSubstr("format_version"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"].erase(3); }), HasSubstr("number of linears"));
  EXPECT_THAT(RefusedWith([](json& r) { std::swap(r["linears"][0], r["linears"][1]); }),
              HasSubstr("out of place"));
  EXPECT_THAT(RefusedWith([](json& r) {
                r["linears"][0]["shape"] = {64, 63};
              }),
              HasSubstr("contradicts"));
  EXPECT_THAT(RefusedWith([](json& r) {
                r["linears"][0]["shape"] = {1e300, 64};
              }),
              HasSubstr("shape"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"][0]["bits"] = 9; }), HasSubstr("bits"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"][0]["bits"] = 4; }),
              HasSubstr("weight_packed"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"][0]["encoding"] = "trellis"; }),
              HasSubstr("trellis"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"][0]["encoding"] = "affine"; }),
              HasSubstr("group_size"));
  EXPECT_THAT(RefusedWith([](json& r) { r["linears"] = 3; }), HasSubstr("linears"));
  folder_.Write("gradq.json", "{");
  EXPECT_THAT(Refused(), HasSubstr("gradq.json"));
  folder_.Remove("gradq.json");
  EXPECT_THAT(Refused(absl::StatusCode::kFailedPrecondition), HasSubstr("gradq.json missing"));
}

TEST_F(DamagedArtifact, CodesAndTables) {
  const std::string good = folder_.Read("model.safetensors");
  const auto header = ParseSafetensors(good, "f");
  const std::string name = "model.layers.2.mlp.down_proj";
  const auto read = [&](const char* tensor, int64_t offset, uint16_t bits) {
    std::string bytes = good;
    std::memcpy(bytes.data() + header->Find(name + "." + tensor)->offset + offset, &bits, 2);
    folder_.Write("model.safetensors", bytes);
    const auto artifact = Artifact::Open(folder_.Open());
    EXPECT_TRUE(artifact.ok()) << artifact.status();
    EXPECT_TRUE((*artifact)->ReadLinear("model.layers.2.mlp.up_proj").ok());
    EXPECT_EQ(VerifyArtifactFiles(*folder_.Open()).code(), absl::StatusCode::kDataLoss);
    const absl::Status status = (*artifact)->ReadLinear(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(read("weight_lut", 6, 0x7c00), AllOf(HasSubstr(name), HasSubstr("not finite")));
  EXPECT_THAT(read("weight_lut", 6, 0xfbff), HasSubstr("not ascending"));
  EXPECT_THAT(read("weight_shape", 0, 65), HasSubstr("weight_shape"));
  // 176 × 3 bits fill 16.5 words: the upper half of the last word must be 0.
  EXPECT_THAT(read("weight_packed", 4 * 16 + 2, 1), HasSubstr("unused bits"));
}

TEST_F(DamagedArtifact, Files) {
  const std::string good = folder_.Read("model.safetensors");
  folder_.Write("model.safetensors", good.substr(0, good.size() - 1));
  EXPECT_THAT(Refused(), HasSubstr("model.safetensors"));
  folder_.Write("model.safetensors", *ReadFile(FixturePath("tiny-llama") + "/model.safetensors"));
  EXPECT_THAT(Refused(), HasSubstr("tensor missing"));
  folder_.Remove("model.safetensors");
  EXPECT_THAT(Refused(absl::StatusCode::kFailedPrecondition), HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace gradq
