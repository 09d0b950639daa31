#include "tests/bench/decode_rows_cuda.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace gradq {
namespace {

std::string BarCell(const DecodeRow& row, std::optional<double> ratio) {
  const std::optional<double> bar = DecodeBar(row.bits);
  if (!bar.has_value() || !ratio.has_value()) return "";
  return absl::StrFormat("%.1f %s", *bar, *ratio >= *bar ? "met" : "MISSED");
}

std::string Mark(const DecodeRow& row) { return row.repeatable ? "" : " RUNS DIFFER"; }

}  // namespace

double TokensPerSecond(const DecodeRow& row) { return 1 / row.token_seconds; }

double DecodeReadShare(const DecodeRow& row, double read_bytes_per_second) {
  return static_cast<double>(row.read_bytes()) / row.step_seconds / read_bytes_per_second;
}

std::optional<double> OverDense(const DecodeRow& row, std::span<const DecodeRow> rows) {
  for (const DecodeRow& dense : rows) {
    if (dense.bits == 16) return dense.token_seconds / row.token_seconds;
  }
  return std::nullopt;
}

std::optional<double> DecodeBar(int bits) {
  switch (bits) {
    case 2:
      return 3.0;
    case 3:
      return 2.6;
    case 4:
      return 2.2;
    default:
      return std::nullopt;
  }
}

std::string DecodeTables(std::span<const DecodeRow> rows, double read_bytes_per_second) {
  std::string text =
      "| linears | context | tokens/s | x dense | bar | step us | linears MB | head MB | KV MB | "
      "of read bandwidth |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (const DecodeRow& row : rows) {
    const std::optional<double> ratio = OverDense(row, rows);
    text += absl::StrFormat(
        "| %s | %d | %.1f | %s | %s | %.1f | %.1f | %.1f | %.1f | %.3f%s |\n", row.linears,
        row.context, TokensPerSecond(row), ratio.has_value() ? absl::StrFormat("%.2f", *ratio) : "",
        BarCell(row, ratio), row.step_seconds * 1e6, static_cast<double>(row.linear_bytes) / 1e6,
        static_cast<double>(row.head_bytes) / 1e6, static_cast<double>(row.cache_bytes) / 1e6,
        DecodeReadShare(row, read_bytes_per_second), Mark(row));
  }
  text +=
      "\n| linears | q+k+v us | o us | gate+up us | down us | head us | attention us | rest us | "
      "between us | host us |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (const DecodeRow& row : rows) {
    const DecodeParts& parts = row.parts;
    text += absl::StrFormat(
        "| %s | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f |\n", row.linears,
        parts.qkv * 1e6, parts.o * 1e6, parts.gate_up * 1e6, parts.down * 1e6, parts.head * 1e6,
        parts.attention * 1e6, parts.rest * 1e6, (row.step_seconds - parts.sum()) * 1e6,
        (row.token_seconds - row.step_seconds) * 1e6);
  }
  return text;
}

nlohmann::json ToJson(const DecodeRow& row, double read_bytes_per_second) {
  const DecodeParts& parts = row.parts;
  return {{"linears", row.linears},
          {"bits", row.bits},
          {"context", row.context},
          {"tokens_per_second", TokensPerSecond(row)},
          {"token_us", row.token_seconds * 1e6},
          {"step_us", row.step_seconds * 1e6},
          {"linear_bytes", row.linear_bytes},
          {"head_bytes", row.head_bytes},
          {"cache_bytes", row.cache_bytes},
          {"read_share", DecodeReadShare(row, read_bytes_per_second)},
          {"repeatable", row.repeatable},
          {"parts_us",
           {{"qkv", parts.qkv * 1e6},
            {"o", parts.o * 1e6},
            {"gate_up", parts.gate_up * 1e6},
            {"down", parts.down * 1e6},
            {"head", parts.head * 1e6},
            {"attention", parts.attention * 1e6},
            {"rest", parts.rest * 1e6}}}};
}

}  // namespace gradq
