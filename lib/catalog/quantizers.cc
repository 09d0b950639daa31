#include "lib/catalog/quantizers.h"

#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

using Needs = std::vector<std::string_view>;

// Of the matrix H that a method minimises δᵀHδ with.
Needs ObjectiveNeeds(Objective objective, const OptionMap&) {
  return {objective == Objective::kPlain ? kGram : kFisherBlocks};
}

constexpr OptionSpec kRtnOptions[] = {
    {.name = "group_size",
     .type = OptionSpec::Type::kInt,
     .default_value = "128",
     .min = 1,
     .max = 1048576,
     .help = "consecutive input weights that share a scale and a zero point; the last group of a "
             "row may be shorter"},
};

constexpr OptionSpec kGridBits = {
    .name = "grid_bits",
    .type = OptionSpec::Type::kChoice,
    .default_value = "0",
    .choices = "0|4|8",
    .help = "not 0: the codebook of each row is moved to an integer grid of this many bits and the "
            "assignments are solved again, so that compressed-tensors can hold the result"};

constexpr OptionSpec kSqueezellmOptions[] = {kGridBits};

constexpr OptionSpec kLnqOptions[] = {
    {.name = "iterations",
     .type = OptionSpec::Type::kInt,
     .default_value = "3",
     .min = 1,
     .max = 100,
     .help = "codebook updates; an assignment update runs before each but the first"},
    {.name = "cycles",
     .type = OptionSpec::Type::kInt,
     .default_value = "4",
     .min = 1,
     .max = 100,
     .help = "coordinate-descent passes over the columns in each assignment update"},
    {.name = "solver",
     .type = OptionSpec::Type::kChoice,
     .default_value = "best",
     .choices = "best|published",
     .help = "best: optimal start, error-feedback candidates, keep-best per row; published: the "
             "paper's algorithm, for comparison"},
    {.name = "shrinkage",
     .type = OptionSpec::Type::kChoice,
     .default_value = "auto",
     .choices = "auto|1|0.95|0.9|0.8|0.7|0.6|0.5|0.4|0.3|0.2|0.1",
     .help = "coupled objective: how far the terms between output channels are shrunk, 1 drops "
             "them; auto takes the value with the lowest loss on held-out calibration windows"},
    {.name = "holdout",
     .type = OptionSpec::Type::kInt,
     .default_value = "16",
     .min = 1,
     .max = 1048576,
     .help = "coupled objective: last calibration windows, at most half of them, on which the "
             "shrinkages are compared; the solve that follows has all windows again"},
    kGridBits,
};

constexpr OptionSpec kDamping = {
    .name = "damping",
    .type = OptionSpec::Type::kDouble,
    .default_value = "0.01",
    .min = 0,
    .max = 1,
    .help =
        "share of the mean diagonal of H added to H before the sweep; grows tenfold where that "
        "is not enough"};

constexpr OptionSpec kGptqOptions[] = {
    {.name = "group_size",
     .type = OptionSpec::Type::kInt,
     .default_value = "128",
     .min = 1,
     .max = 1048576,
     .help = "consecutive input weights that share a scale and a zero point; the last group of a "
             "row may be shorter"},
    {.name = "order",
     .type = OptionSpec::Type::kChoice,
     .default_value = "activation",
     .choices = "natural|activation",
     .help = "order in which the columns are rounded; activation: by falling diagonal of H, with "
             "grids fitted before the sweep, since groups stay consecutive input weights "
             "(compressed-tensors' actorder weight)"},
    {.name = "static_groups",
     .type = OptionSpec::Type::kChoice,
     .default_value = "no",
     .choices = "no|yes",
     .help = "yes: grids are fitted to the original weights before the sweep; no: each to the "
             "weights as they are when the sweep reaches its group, which needs order natural"},
    kDamping,
};

constexpr OptionSpec kGptvqOptions[] = {
    {.name = "iterations",
     .type = OptionSpec::Type::kInt,
     .default_value = "1",
     .min = 1,
     .max = 100,
     .help =
         "sweeps over the columns, each followed by a codebook update; each row keeps its best"},
    kDamping,
};

constexpr QuantizerRow kRows[] = {
    {.name = "rtn",
     .summary =
         "round to nearest on an affine grid per group of input weights; needs no calibration",
     .paper = "baseline",
     .encoding = Encoding::kAffine,
     .min_bits = 1,
     .max_bits = 8,
     .uses_objective = false,
     .options = kRtnOptions,
     .needs = [](Objective, const OptionMap&) { return Needs{}; }},
    {.name = "gptq",
     .summary = "affine grids like rtn, columns rounded one by one with their error fed back to "
                "later ones; a row that round to nearest serves better keeps that",
     .paper = "arXiv:2210.17323",
     .encoding = Encoding::kAffine,
     .min_bits = 1,
     .max_bits = 8,
     .uses_objective = true,
     .options = kGptqOptions,
     .needs = ObjectiveNeeds},
    {.name = "gptvq1d",
     .summary = "a codebook per output row (the paper: per group of rows and up to 256 columns), "
                "k-means then GPTQ's error feedback, then codewords by least squares in closed "
                "form (the paper: Adam)",
     .paper = "arXiv:2402.15319",
     .encoding = Encoding::kLut,
     .min_bits = 1,
     .max_bits = 8,
     .uses_objective = true,
     .options = kGptvqOptions,
     .needs = ObjectiveNeeds},
    {.name = "squeezellm",
     .summary =
         "a codebook per output row by optimal k-means, weighted with squared weight gradients",
     .paper = "arXiv:2306.07629",
     .encoding = Encoding::kLut,
     .min_bits = 1,
     .max_bits = 8,
     .uses_objective = false,
     .options = kSqueezellmOptions,
     .needs = [](Objective, const OptionMap&) { return Needs{kFisherDiagonal}; }},
    {.name = "lnq",
     .summary = "a codebook per output row by layer-wise non-uniform quantization; guided by "
                "end-loss gradients per channel group",
     .paper = "arXiv:2505.07004",
     .encoding = Encoding::kLut,
     .min_bits = 1,
     .max_bits = 8,
     .uses_objective = true,
     .options = kLnqOptions,
     .needs =
         [](Objective objective, const OptionMap& options) {
           Needs needs{objective == Objective::kPlain ? kGram : kFisherBlocks};
           if (objective == Objective::kCoupled) needs.push_back(kOutputFisher);
           // The published algorithm starts from SqueezeLLM's assignment.
           if (OptionWord(options, "solver") == "published") needs.push_back(kFisherDiagonal);
           return needs;
         }},
};

constexpr std::string_view kObjectives[] = {"guided", "plain", "coupled"};

}  // namespace

absl::StatusOr<Objective> ParseObjective(std::string_view word) {
  if (word == ObjectiveName(Objective::kGuided)) return Objective::kGuided;
  if (word == ObjectiveName(Objective::kPlain)) return Objective::kPlain;
  if (word == ObjectiveName(Objective::kCoupled)) return Objective::kCoupled;
  return absl::InvalidArgumentError(UnknownNameMessage("objective", word, kObjectives));
}

std::string_view ObjectiveName(Objective objective) {
  return kObjectives[static_cast<int>(objective)];
}

std::span<const QuantizerRow> Quantizers() { return kRows; }

absl::StatusOr<const QuantizerRow*> FindQuantizer(std::string_view name) {
  std::vector<std::string_view> known;
  for (const QuantizerRow& row : kRows) {
    if (row.name == name) return &row;
    known.push_back(row.name);
  }
  return absl::InvalidArgumentError(UnknownNameMessage("method", name, known));
}

}  // namespace gradq
