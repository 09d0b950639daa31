#pragma once

// From measured rows to the table of lib/kernels/tile_path.cc: which path was the fastest, and
// which bounds lose the least. Pure.

#include <span>
#include <string>
#include <vector>

#include "lib/kernels/tile_path.h"
#include "tests/bench/product_rows_cuda.h"

namespace gradq {

// "matvec", "matmul", "dequantize".
const char* PathName(kernels::TilePath path);

// One product (layer, width, batch) without outliers: its fastest path, and the one that
// tile_path.h takes today (null when it was not timed).
struct PathChoice {
  const ProductRow* fastest = nullptr;
  const ProductRow* chosen = nullptr;
};
// In order of bits, else of `rows`.
std::vector<PathChoice> FastestPaths(std::span<const ProductRow> rows);

// A row of the table whose bounds are batches of `rows`. The slowdown of a product is the time of
// the path that the row takes over that of its fastest.
struct FittedPathRow {
  kernels::TilePathRow row;
  double mean_slowdown = 1;  // geometric, over layers and batches
  double worst_slowdown = 1;
};
// Per encoding and width of `rows` the bounds of the least mean slowdown; of equals the largest.
// Only products without outliers count, and only bounds for which every path that they take has
// been timed.
std::vector<FittedPathRow> FitPathTable(std::span<const ProductRow> rows);

// Source lines for tile_path.cc, then a line per product.
std::string PathTableText(std::span<const ProductRow> rows);

}  // namespace gradq
