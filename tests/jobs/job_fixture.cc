#include "tests/jobs/job_fixture.h"

#include <algorithm>
#include <cstdlib>

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/catalog/recipe.h"
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
  Recipe given = RecipeOf(recipe).value();
  // A test that changes the method leaves the options of another one behind.
  const QuantizerRow& row = *FindQuantizer(given.method).value();
  std::erase_if(given.options, [&](const auto& option) {
    return std::none_of(row.options.begin(), row.options.end(),
                        [&](const OptionSpec& spec) { return spec.name == option.first; });
  });
  const Recipe resolved = ResolveRecipe(given).value();
  recipe.clear_options();
  recipe.mutable_options()->insert(resolved.options.begin(), resolved.options.end());
  recipe.clear_outlier_options();
  recipe.mutable_outlier_options()->insert(resolved.outlier_options.begin(),
                                           resolved.outlier_options.end());
}

const v1::RoundPlan& RoundOfLease(const v1::Lease& lease) {
  const v1::TaskSpec& spec = lease.spec();
  const int round = spec.has_run_stage()      ? spec.run_stage().round()
                    : spec.has_score_linear() ? spec.score_linear().round()
                                              : spec.solve_linear().round();
  return lease.job().plan().rounds(round);
}

int SummedChunks(const v1::Lease& lease) {
  const v1::RoundPlan& round = RoundOfLease(lease);
  const int size = lease.job().plan().chunk_sequences();
  int nodes = 0;
  for (const v1::RoundPlan::Node& node : round.nodes()) nodes += node.coefficient() != 0 ? 1 : 0;
  return nodes * ((round.sequences() + size - 1) / size);
}

namespace {

v1::ScoreSummary FakeScore(const v1::Lease& lease) {
  const std::string& linear = lease.spec().score_linear().linear();
  const auto& linears = lease.job().plan().linears();
  const int at =
      static_cast<int>(std::find(linears.begin(), linears.end(), linear) - linears.begin());
  v1::ScoreSummary score;
  score.set_linear(linear);
  score.set_weights(10000);
  score.set_signed_sum(0.01 * (at + 1));
  score.set_absolute_sum(1.0 + at);
  for (int i = 2; i >= 0; --i) {
    score.add_bucket(at - 100 * i);
    score.add_count(5 + 20 * i);
  }
  return score;
}

}  // namespace

v1::TaskResult FakeResult(const v1::Lease& lease) {
  v1::TaskResult result;
  if (lease.spec().run_stage().loss()) {
    for (const v1::RoundPlan::Node& node : RoundOfLease(lease).nodes()) {
      result.add_node_loss_sum(30 + node.t() * (5 + std::abs(node.variant() - 2)));
    }
    result.set_loss_sum(result.node_loss_sum(0));
    result.set_loss_tokens(10);
  }
  if (lease.spec().has_score_linear()) *result.mutable_score() = FakeScore(lease);
  if (!lease.spec().has_solve_linear()) return result;
  const v1::SolveLinear& solve = lease.spec().solve_linear();
  std::string origin = lease.decision().SerializeAsString();
  for (const v1::ShardRef& shard : lease.shards()) origin += shard.sha256();
  for (const v1::StreamLocation& statistic : lease.statistics()) {
    origin += StrCat(statistic.stream().task(), statistic.stream().lane());
  }
  for (int variant = 0; variant < RoundOfLease(lease).variants(); ++variant) {
    v1::ShardSummary& shard = *result.add_shards();
    shard.set_linear(solve.linear());
    shard.set_sha256(Sha256Hex(
        std::string_view(StrCat(solve.linear(), "|", solve.round(), "|", variant, "|", origin))));
    shard.set_bytes(100 + variant);
    shard.set_bits(2 + variant);
    shard.set_weights(10000);
    shard.set_average_bits(2.5 + variant);
    shard.set_predicted_loss_increase(0.5 / (1 << 2 * variant));
  }
  return result;
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
