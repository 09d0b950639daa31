#include "services/cli/job_flags.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <span>
#include <utility>

#include "lib/base/strings.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/quantizers.h"

namespace gradq {
namespace {

std::string WithDashes(std::string_view option) {
  std::string text(option);
  std::replace(text.begin(), text.end(), '_', '-');
  return text;
}

// An option that one or several rows of a table have, each with its own meaning and default.
struct SharedOption {
  struct Meaning {
    std::string_view help;
    std::string_view default_value;
    std::string rows;
  };
  std::string_view name;
  std::vector<Meaning> meanings;
};

template <typename Row>
std::vector<SharedOption> OptionsOf(std::span<const Row> rows) {
  std::vector<SharedOption> options;
  for (const Row& row : rows) {
    for (const OptionSpec& spec : row.options) {
      auto option = std::find_if(options.begin(), options.end(),
                                 [&](const SharedOption& seen) { return seen.name == spec.name; });
      if (option == options.end()) option = options.insert(options.end(), {spec.name, {}});
      auto same = std::find_if(
          option->meanings.begin(), option->meanings.end(), [&](const SharedOption::Meaning& seen) {
            return seen.help == spec.help && seen.default_value == spec.default_value;
          });
      if (same == option->meanings.end()) {
        option->meanings.push_back({spec.help, spec.default_value, std::string(row.name)});
      } else {
        same->rows += StrCat(", ", row.name);
      }
    }
  }
  return options;
}

// "help (gwq: default 0.01; squeezellm, pqi: default 0.0045)"; where rows mean different things,
// "lnq: help (default 3); gptvq1d: other help (default 1)".
std::string HelpOf(const SharedOption& option) {
  const std::vector<SharedOption::Meaning>& meanings = option.meanings;
  const bool one_help = std::all_of(
      meanings.begin(), meanings.end(),
      [&](const SharedOption::Meaning& meaning) { return meaning.help == meanings.front().help; });
  std::string text;
  for (const SharedOption::Meaning& meaning : meanings) {
    const std::string_view separator = text.empty() ? "" : "; ";
    text += one_help ? StrCat(separator, meaning.rows, ": default ", meaning.default_value)
                     : StrCat(separator, meaning.rows, ": ", meaning.help, " (default ",
                              meaning.default_value, ")");
  }
  return one_help ? StrCat(meanings.front().help, " (", text, ")") : text;
}

template <typename Row>
void AddCatalogFlags(CLI::App& command, std::span<const Row> rows,
                     std::string (*flag)(std::string_view), const char* group,
                     std::map<std::string, std::string>& given) {
  for (const SharedOption& option : OptionsOf(rows)) {
    command
        .add_option_function<std::string>(
            flag(option.name),
            [&given, name = std::string(option.name)](const std::string& value) {
              given[name] = value;
            },
            HelpOf(option))
        ->take_last()
        ->group(group);
  }
}

}  // namespace

std::string MethodFlag(std::string_view option) { return StrCat("--", WithDashes(option)); }

std::string OutlierFlag(std::string_view option) {
  // The one that has a name of its own in the command-line contract.
  if (option == "nodes") return "--outlier-nodes,--nodes";
  return StrCat("--outlier-", WithDashes(option));
}

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
                          "What lnq and gptq minimise: guided (end loss), plain (layer output) or "
                          "coupled (end loss with the terms between output channels; lnq)"))
      ->capture_default_str();
  integer("--bits", flags.bits, 1, 8, "Bits per weight");
  last(command.add_option("--average-bits", flags.average_bits,
                          "Mixed widths: every linear is solved at 2, 3 and 4 bits and the widths "
                          "with the least predicted loss are taken that store at most so many bits "
                          "per weight (codes, tables and outliers)"))
      ->check(CLI::PositiveNumber)
      ->excludes("--bits");
  command.add_flag("--free-widths", flags.free_widths,
                   "Mixed widths: q, k, v of a block, and gate, up, need not share one");
  integer("--groups", flags.groups, 1, 1 << 20, "Channel groups that share one Fisher block");
  last(command.add_option("--outliers", flags.outliers,
                          "Which weights stay in fp16, see `gradq methods`"))
      ->capture_default_str();
  command.add_flag("--forward-only", flags.forward_only,
                   "Refuse the job when some part of it needs gradients");

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

  AddCatalogFlags(command, Quantizers(), MethodFlag, "Method options", flags.method_options);
  AddCatalogFlags(command, OutlierPolicies(), OutlierFlag, "Outlier options",
                  flags.outlier_options);
}

v1::JobSpec ToSpec(const JobFlags& flags) {
  v1::JobSpec spec;
  spec.set_model(flags.model);
  spec.set_output(flags.output);
  spec.set_force(flags.force);
  v1::Recipe& recipe = *spec.mutable_recipe();
  recipe.set_method(flags.method);
  recipe.set_objective(flags.objective);
  if (flags.average_bits.has_value()) {
    recipe.set_average_bits(*flags.average_bits);
  } else {
    recipe.set_bits(flags.bits);
  }
  recipe.set_free_widths(flags.free_widths);
  recipe.set_groups(flags.groups);
  recipe.set_outliers(flags.outliers);
  for (const auto& [name, value] : flags.method_options) (*recipe.mutable_options())[name] = value;
  for (const auto& [name, value] : flags.outlier_options)
    (*recipe.mutable_outlier_options())[name] = value;
  spec.set_forward_only(flags.forward_only);
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
    if (key == "force" || key == "forward-only" || key == "free-widths") {
      if (value != "true" && value != "false") {
        return absl::InvalidArgumentError(
            StrCat("job file value is not true or false: ", path, ", key ", key, ": ", value));
      }
      if (value == "true") arguments.push_back(StrCat("--", key));
      continue;
    }
    arguments.push_back(StrCat("--", key));
    arguments.push_back(value);
  }
  return arguments;
}

}  // namespace gradq
