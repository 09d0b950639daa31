#pragma once

// What lut_matmul_cuda prints: a row per product timed, the bars of docs/benchmarks.md applied to
// them, and which path was the fastest. Pure.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lib/kernels/cuda/tile_layout.h"

namespace gradq {

// Of the machine and the run.
struct BenchConditions {
  std::string device = "none";
  int multiprocessors = 0;
  int64_t l2_bytes = 0;
  double read_bytes_per_second = 0;  // of a plain kernel that sums 16-byte loads
  double empty_node_seconds = 0;     // an empty kernel as a node of a graph
  int rounds = 0;                    // that medians are taken of
};

struct ProductRow {
  std::string shape;  // ShapeName
  int64_t out_features = 0;
  int64_t in_features = 0;
  kernels::TileEncoding encoding = kernels::TileEncoding::kLut;
  int bits = 0;
  double outlier_percent = 0;
  int64_t batch = 0;
  std::string path;          // "matvec", "matmul" or "dequantize"
  bool chosen = false;       // by tile_path.h
  double seconds = 0;        // per product, median
  double dense_seconds = 0;  // cuBLAS fp16 in the same run, median
  int64_t read_bytes = 0;    // of the packed matrix
  // Largest |y - y64| of the sampled outputs over what it may be (OutputError), and whether two
  // runs gave the same bits.
  double error = 0;
  bool repeatable = false;
};

// × cuBLAS, and packed bytes per second over what a plain read reaches.
double Speedup(const ProductRow& row);
double ReadShare(const ProductRow& row, const BenchConditions& conditions);
bool Correct(const ProductRow& row);

// The mean of the two middle ones where there is an even number; not empty.
double Median(std::vector<double> values);

// |y - Σ ŵᵢxᵢ| over 1e-3 · Σ|ŵᵢxᵢ| + 1 ulp of fp16: at most 1 for a right output. `y`, x [in] fp16
// bits, `weights` [in]. Infinite when y is not finite.
double OutputError(uint16_t y, std::span<const uint16_t> x, std::span<const float> weights);

// Rows of a Markdown table, with its two head lines first.
std::string TableHead();
std::string TableLine(const ProductRow& row, const BenchConditions& conditions);
// One line: device, bandwidth, floor.
std::string ConditionsLine(const BenchConditions& conditions);
nlohmann::json ToJson(const ProductRow& row, const BenchConditions& conditions);
nlohmann::json ToJson(const BenchConditions& conditions);

// A bar and the worst row it applies to. Nothing measured: `measured` is empty.
struct Verdict {
  std::string what;
  double bar = 0;
  bool at_least = true;  // else at most
  std::optional<double> measured;
  std::string worst;  // the row
  bool met() const;
};
// Of the rows that tile_path.h chooses, LUT only.
std::vector<Verdict> Judge(std::span<const ProductRow> rows, const BenchConditions& conditions);
std::string VerdictLine(const Verdict& verdict);

}  // namespace gradq
