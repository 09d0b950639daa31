#pragma once

// What decode_cuda prints: a row per form of the linears, and where a token's time goes. Pure.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gradq {

// Seconds per token on the device, each part alone in a graph of its own.
struct DecodeParts {
  double qkv = 0;
  double o = 0;
  double gate_up = 0;
  double down = 0;
  double head = 0;
  double attention = 0;
  double rest = 0;  // norms, rotary with cache append, SwiGLU, embedding
  double sum() const { return qkv + o + gate_up + down + head + attention + rest; }
};

struct DecodeRow {
  std::string linears;  // "dense fp16", "3 bits"
  int bits = 16;
  int64_t context = 0;
  // Median seconds per token: as generation runs (token to the device, graph, logits to the host,
  // the next token chosen there), and of the recorded step alone.
  double token_seconds = 0;
  double step_seconds = 0;
  // What a token reads: linears as stored, the dense head, keys and values of the context.
  int64_t linear_bytes = 0;
  int64_t head_bytes = 0;
  int64_t cache_bytes = 0;
  DecodeParts parts;
  bool repeatable = false;  // two runs of a step gave the same logits, all finite

  int64_t read_bytes() const { return linear_bytes + head_bytes + cache_bytes; }
};

double TokensPerSecond(const DecodeRow& row);
// Share of the read bandwidth that read_bytes() in step_seconds are.
double DecodeReadShare(const DecodeRow& row, double read_bytes_per_second);
// Tokens per second over those of the dense row; nothing where there is none.
std::optional<double> OverDense(const DecodeRow& row, std::span<const DecodeRow> rows);
// What docs/benchmarks.md asks of OverDense; nothing for other widths.
std::optional<double> DecodeBar(int bits);

// Two Markdown tables: rates, and microseconds per token by part with what is between them.
std::string DecodeTables(std::span<const DecodeRow> rows, double read_bytes_per_second);
nlohmann::json ToJson(const DecodeRow& row, double read_bytes_per_second);

}  // namespace gradq
