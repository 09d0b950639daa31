#include "tests/jobs/job_fixture.h"

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/catalog/quantizers.h"
#include "lib/jobs/plan_messages.h"

namespace gradq {

NewJob TinyJob(int blocks) {
  NewJob job;
  job.spec.set_model("tiny");
  job.spec.set_calibration_blob(Sha256Hex(std::string_view("calibration")));
  job.spec.set_sequences(4);
  job.spec.set_length(32);
  job.spec.set_chunk_sequences(2);
  job.spec.set_compute_dtype("float32");
  v1::Recipe& recipe = *job.spec.mutable_recipe();
  recipe.set_method("lnq");
  recipe.set_objective("guided");
  recipe.set_bits(3);
  recipe.set_groups(4);
  recipe.set_outliers("none");
  ResolveRecipe(&job.spec);
  job.config_json = StrCat(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 176, "max_position_embeddings": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": 512, "num_hidden_layers": )",
                           blocks, "}");
  job.model_path = "/models/tiny";
  job.model_digest = Sha256Hex(std::string_view("model"));
  job.calibration_tokens = "calibration.tokens";
  job.output_path = "/output/tiny";
  job.original_bytes = 1000;
  return job;
}

void ResolveRecipe(v1::JobSpec* spec) {
  v1::Recipe& recipe = *spec->mutable_recipe();
  const QuantizerRow& row = *FindQuantizer(recipe.method()).value();
  recipe.clear_options();
  const OptionMap options = ResolveOptions(row.name, row.options, {}).value();
  recipe.mutable_options()->insert(options.begin(), options.end());
}

int64_t JustEnoughMemory(const NewJob& job) {
  const v1::JobSpec& spec = job.spec;
  PlanInputs inputs;
  inputs.geometry = ParseGeometry(job.config_json).value();
  inputs.recipe = RecipeOf(spec.recipe()).value();
  inputs.sequences = spec.sequences();
  inputs.length = spec.length();
  inputs.chunk_sequences = spec.chunk_sequences();
  inputs.stages = spec.stages();
  return MakePlan(inputs)->worker_memory_bytes;
}

}  // namespace gradq
