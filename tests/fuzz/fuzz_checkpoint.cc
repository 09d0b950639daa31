// A checkpoint folder: config.json, index and two shards, opened and read as a job does before it
// is accepted.

#include "lib/base/status_macros.h"
#include "lib/catalog/plan.h"
#include "lib/format/checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/memory_folder.h"
#include "tests/fuzz/seeds.h"
#include "tests/fuzz/small_model.h"

namespace {
const std::vector<std::string> kSharded = {"config.json", "model.safetensors.index.json",
                                           "a.safetensors", "b.safetensors"};
const std::vector<std::string> kSingle = {"config.json", "model.safetensors"};

// Geometries that parse must be safe to plan with, whatever their sizes.
void CheckPlan(const std::string& config) {
  const auto geometry = gradq::ParseGeometry(config);
  if (!geometry.ok()) return;
  for (const gradq::TensorShape& tensor : gradq::BlockTensorsOf(*geometry, 0)) {
    int64_t bytes = 4 * geometry->blocks;
    for (const int64_t size : tensor.shape)
      GRADQ_CHECK(size > 0 && !__builtin_mul_overflow(bytes, size, &bytes));
  }
  gradq::PlanInputs inputs;
  inputs.geometry = *geometry;
  inputs.recipe.method = "lnq";
  inputs.recipe.groups = 1;
  const auto plan = gradq::MakePlan(inputs);
  GRADQ_CHECK(plan.ok() && plan->worker_memory_bytes > 0);
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  auto folder = gradq::FolderOf(input.substr(1), input[0] % 2 == 0 ? kSharded : kSingle);
  if (const auto config = folder->ReadAll("config.json", 1 << 20); config.ok()) CheckPlan(*config);
  const auto checkpoint = gradq::Checkpoint::Open(std::move(folder));
  if (checkpoint.ok()) (void)gradq::CheckFinite(**checkpoint);
  return 0;
}

std::vector<std::string> gradq::FuzzSeeds() {
  nlohmann::json map;
  const std::vector<TensorShape> tensors = TensorsOf(*ParseGeometry(kSmallConfig));
  for (size_t i = 0; i < tensors.size(); ++i)
    map[tensors[i].name] = i < 5 ? "a.safetensors" : "b.safetensors";
  const std::string index = nlohmann::json{{"weight_map", map}}.dump();
  std::vector<std::string> seeds = {
      std::string(1, '\0') +
          ContainerOf({kSmallConfig, index, SmallWeights(0, 5), SmallWeights(5, 100)}),
      std::string(1, '\1') + ContainerOf({kSmallConfig, SmallWeights(0, 100)})};
  nlohmann::json now = nlohmann::json::parse(kSmallConfig);
  now["model_type"] = "mistral";
  now["architectures"] = {"MistralForCausalLM"};
  now["sliding_window"] = 8;
  now["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 1e6}};
  seeds.push_back(std::string(1, '\1') + ContainerOf({now.dump()}));
  return seeds;
}
