#include "lib/catalog/export_formats.h"

#include <algorithm>

#include "lib/base/strings.h"
#include "lib/catalog/options.h"

namespace gradq {
namespace {

using Linears = std::span<const ExportedLinear>;

// The first of `linears` about which `fact` has something to say, with its name.
template <typename Fact>
std::string FirstRefusal(Linears linears, const Fact& fact) {
  for (const ExportedLinear& linear : linears) {
    if (const std::string found = fact(linear); !found.empty())
      return StrCat(found, ": ", linear.name);
  }
  return linears.empty() ? "no linears" : "";
}

std::string RefuseAnyPrecision(Linears linears) {
  return FirstRefusal(linears, [&](const ExportedLinear& linear) -> std::string {
    if (linear.encoding != Encoding::kLut) return "holds codebooks only, not affine codes";
    if (linear.outliers) return "holds no outliers";
    if (linear.bits < 2) return StrCat("holds 2 to 8 bits, not ", linear.bits);
    if (linear.bits != linears.front().bits)
      return StrCat("holds one width, not ", linears.front().bits, " and ", linear.bits);
    if (linear.in_features % 32 != 0)
      return StrCat("in-features must be a multiple of 32, not ", linear.in_features);
    // Its kernel leaves the rest of the rows out without a word.
    if (linear.out_features % 4 != 0)
      return StrCat("out-features must be a multiple of 4, not ", linear.out_features);
    return "";
  });
}

std::string RefuseCompressedTensors(Linears linears) {
  const bool whole_rows = std::all_of(
      linears.begin(), linears.end(),
      [](const ExportedLinear& linear) { return linear.group_size == linear.in_features; });
  return FirstRefusal(linears, [&](const ExportedLinear& linear) -> std::string {
    const ExportedLinear& first = linears.front();
    if (linear.encoding != Encoding::kAffine) return "holds affine codes only, not codebooks";
    if (linear.outliers) return "holds no outliers";
    if (linear.bits != 4 && linear.bits != 8) return StrCat("holds 4 or 8 bits, not ", linear.bits);
    if (linear.bits != first.bits)
      return StrCat("holds one width, not ", first.bits, " and ", linear.bits);
    if (whole_rows) return "";
    if (linear.group_size != first.group_size)
      return StrCat("holds one group size, not ", first.group_size, " and ", linear.group_size);
    if (linear.in_features % linear.group_size != 0)
      return StrCat("the group size must divide in-features: ", linear.group_size, ", ",
                    linear.in_features);
    return "";
  });
}

constexpr ExportFormatRow kRows[] = {
    {.name = kAnyPrecision,
     .summary = "bit planes and codebooks of Any-Precision LLM and GuidedQuant; exact",
     .files = "config.json with \"anyprec\", model.safetensors, tokenizer; read by their "
              "AnyPrecisionForCausalLM",
     .refusal = RefuseAnyPrecision},
    {.name = kCompressedTensors,
     .summary = "pack-quantized integers of compressed-tensors; exact for affine codes",
     .files = "config.json with quantization_config, model.safetensors, tokenizer; read by "
              "transformers and vLLM",
     .refusal = RefuseCompressedTensors},
    {.name = kDenseBf16,
     .summary = "fake-quantized: the weights the codes stand for, rounded to bf16; as large as the "
                "original",
     .files = "config.json, model.safetensors, tokenizer; read by whatever reads the original",
     .refusal = [](Linears) { return std::string(); }},
};

}  // namespace

std::span<const ExportFormatRow> ExportFormats() { return kRows; }

absl::StatusOr<const ExportFormatRow*> FindExportFormat(std::string_view name) {
  std::vector<std::string_view> known;
  for (const ExportFormatRow& row : kRows) {
    if (row.name == name) return &row;
    known.push_back(row.name);
  }
  return absl::InvalidArgumentError(UnknownNameMessage("export format", name, known));
}

absl::Status CheckExport(const ExportFormatRow& row, std::span<const ExportedLinear> linears) {
  const std::string refusal = row.refusal(linears);
  if (refusal.empty()) return absl::OkStatus();
  std::string others;
  for (const ExportFormatRow& other : kRows) {
    if (other.refusal(linears).empty()) others += StrCat(others.empty() ? "" : ", ", other.name);
  }
  return absl::FailedPreconditionError(
      StrCat(row.name, " cannot hold this model: ", refusal, "; formats that can: ", others));
}

}  // namespace gradq
