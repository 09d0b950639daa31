// An artifact folder, opened and read as the inference worker does: every linear and every kept
// tensor.

#include <cstdlib>
#include <filesystem>

#include "lib/base/status_macros.h"
#include "lib/format/artifact.h"
#include "lib/format/inspect.h"
#include "tests/format/random_linear.h"
#include "tests/fuzz/memory_folder.h"
#include "tests/fuzz/seeds.h"
#include "tests/fuzz/small_model.h"

namespace {
const std::vector<std::string> kFiles = {"config.json", "gradq.json", "model.safetensors"};

std::string Seed(gradq::Encoding encoding, int bits, bool outliers = false) {
  auto original = gradq::Checkpoint::Open(std::make_unique<gradq::MemoryFolder>(
      std::map<std::string, std::string>{{"config.json", gradq::kSmallConfig},
                                         {"model.safetensors", gradq::SmallWeights(0, 100)}}));
  GRADQ_CHECK(original.ok());
  gradq::ArtifactInputs inputs;
  inputs.original = original->get();
  inputs.recipe_json = "{}";
  inputs.read_shard = [&](const std::string& name) -> absl::StatusOr<std::string> {
    for (const gradq::LinearShape& linear : gradq::LinearsOf((*original)->geometry())) {
      if (linear.name == name) {
        gradq::QuantizedLinear quantized = gradq::RandomLinear(
            name, encoding, bits, linear.out_features, linear.in_features, 3, 1);
        if (outliers) gradq::AddRandomOutliers(&quantized, 20, 1);
        return gradq::SerializeShard(quantized);
      }
    }
    return absl::NotFoundError(name);
  };
  std::string folder = (std::filesystem::temp_directory_path() / "gradq-fuzz-XXXXXX").string();
  GRADQ_CHECK(mkdtemp(folder.data()) != nullptr);
  GRADQ_CHECK(gradq::WriteArtifact(inputs, folder).ok());
  std::vector<std::string> files;
  for (const std::string& name : kFiles) files.push_back(*gradq::ReadFile(folder + "/" + name));
  std::filesystem::remove_all(folder);
  return gradq::ContainerOf(files);
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto inspection = gradq::InspectArtifact(gradq::FolderOf(input, kFiles));
  if (inspection.ok()) (void)gradq::InspectionJson(*inspection);
  (void)gradq::VerifyArtifactFiles(*gradq::FolderOf(input, kFiles));
  const auto artifact = gradq::Artifact::Open(gradq::FolderOf(input, kFiles));
  if (!artifact.ok()) return 0;
  for (const std::string& name : (*artifact)->linears()) {
    const auto linear = (*artifact)->ReadLinear(name);
    if (linear.ok())
      GRADQ_CHECK(static_cast<int64_t>(gradq::Dequantize(*linear).size()) == linear->weights());
  }
  for (const gradq::TensorShape& tensor : gradq::DenseTensorsOf((*artifact)->geometry()))
    (void)(*artifact)->dense().ReadFloat32(tensor.name);
  return 0;
}

std::vector<std::string> gradq::FuzzSeeds() {
  return {Seed(Encoding::kLut, 3), Seed(Encoding::kAffine, 4), Seed(Encoding::kAffine, 3),
          Seed(Encoding::kLut, 2, true)};
}
