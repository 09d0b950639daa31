#include "services/cli/job_flags.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "lib/base/strings.h"
#include "lib/catalog/quantizers.h"

namespace gradq {

void AddJobFlags(CLI::App& command, JobFlags& flags, bool output_required) {
  // A later flag wins, so that the command line overrides a job file.
  const auto last = [](CLI::Option* option) { return option->take_last(); };
  const auto integer = [&](const char* name, int& value, int min, int max, const char* help) {
    last(command.add_option(name, value, help)->check(CLI::Range(min, max)))->capture_default_str();
  };
  last(command
           .add_option("--model", flags.model,
                       "Checkpoint folder (config.json, safetensors, tokenizer.json)")
           ->required())
      ->type_name("DIR");
  last(command.add_option("--calibration", flags.calibration, "UTF-8 text to calibrate on")
           ->required())
      ->type_name("FILE");
  CLI::Option* output =
      last(command.add_option("--output", flags.output, "Folder for the quantized model"));
  output->type_name("DIR");
  if (output_required) output->required();
  last(command.add_option("--evaluation", flags.evaluation,
                          "UTF-8 text to compare both models on afterwards"))
      ->type_name("FILE");

  last(command.add_option("--method", flags.method, "Quantizer, see `gradq methods`"))
      ->capture_default_str();
  last(command.add_option("--objective", flags.objective,
                          "What lnq minimises: guided (end loss) or plain (layer output)"))
      ->capture_default_str();
  integer("--bits", flags.bits, 1, 8, "Bits per weight");
  integer("--groups", flags.groups, 1, 1 << 20, "Channel groups that share one Fisher block");
  last(command.add_option("--outliers", flags.outliers, "Outlier policy, see `gradq methods`"))
      ->capture_default_str();

  integer("--sequences", flags.sequences, 1, 1 << 24, "Calibration windows");
  integer("--length", flags.length, 2, 1 << 24, "Tokens per window");
  integer("--evaluation-sequences", flags.evaluation_sequences, 0, 1 << 24,
          "Evaluation windows, 0 for all");
  last(command.add_option("--shuffle-seed", flags.shuffle_seed,
                          "Random calibration windows drawn with this seed (default: in order)"));
  integer("--stages", flags.stages, 0, 1 << 20, "Pipeline stages, 0 to let the plan choose");
  integer("--chunk-sequences", flags.chunk_sequences, 1, 1 << 20, "Windows per chunk");
  last(command.add_option("--compute-dtype", flags.compute_dtype, "float32, or bfloat16 on CUDA"))
      ->capture_default_str();
  integer("--validate-timeout", flags.validate_timeout, 0, 1 << 24,
          "Seconds to wait for an inference worker before validation is skipped");
  command.add_flag("--force", flags.force, "Replace an existing output, atomically");

  for (const QuantizerRow& row : Quantizers()) {
    for (const OptionSpec& spec : row.options) {
      std::string flag = StrCat("--", spec.name);
      std::replace(flag.begin(), flag.end(), '_', '-');
      if (command.get_option_no_throw(flag) != nullptr) continue;
      last(command.add_option_function<std::string>(
               flag,
               [&flags, name = std::string(spec.name)](const std::string& value) {
                 flags.method_options[name] = value;
               },
               StrCat(spec.help, " (", row.name, ", default ", spec.default_value, ")")))
          ->group("Method options");
    }
  }
}

v1::JobSpec ToSpec(const JobFlags& flags) {
  v1::JobSpec spec;
  spec.set_model(flags.model);
  spec.set_output(flags.output);
  spec.set_force(flags.force);
  v1::Recipe& recipe = *spec.mutable_recipe();
  recipe.set_method(flags.method);
  recipe.set_objective(flags.objective);
  recipe.set_bits(flags.bits);
  recipe.set_groups(flags.groups);
  recipe.set_outliers(flags.outliers);
  for (const auto& [name, value] : flags.method_options) (*recipe.mutable_options())[name] = value;
  spec.set_sequences(flags.sequences);
  spec.set_length(flags.length);
  spec.set_evaluation_sequences(flags.evaluation_sequences);
  if (flags.shuffle_seed.has_value()) spec.set_shuffle_seed(*flags.shuffle_seed);
  spec.set_stages(flags.stages);
  spec.set_chunk_sequences(flags.chunk_sequences);
  spec.set_compute_dtype(flags.compute_dtype);
  spec.set_validate_timeout_s(flags.validate_timeout);
  return spec;
}

absl::StatusOr<std::vector<std::string>> ReadJobFile(const std::string& path) {
  YAML::Node root;
  try {
    root = YAML::LoadFile(path);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(StrCat("cannot read job file: ", path, ": ", error.what()));
  }
  if (!root.IsMap())
    return absl::InvalidArgumentError(StrCat("job file is not a map of flags: ", path));
  std::vector<std::string> arguments;
  for (const auto& entry : root) {
    const std::string key = entry.first.as<std::string>("");
    if (key.empty() || !entry.second.IsScalar()) {
      return absl::InvalidArgumentError(
          StrCat("job file value is not a scalar: ", path, ", key ", key));
    }
    const std::string value = entry.second.Scalar();
    if (key == "force") {
      if (value == "true") arguments.push_back("--force");
      continue;
    }
    arguments.push_back(StrCat("--", key));
    arguments.push_back(value);
  }
  return arguments;
}

}  // namespace gradq
