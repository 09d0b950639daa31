#pragma once

// Which products the benchmark of the CUDA kernels times, and how it keeps their weights cold: the
// linears of Llama-2-7B, Llama-3-8B and Llama-2/3-70B, and copies of a matrix that a graph takes in
// turns. Pure.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/tile_matrix.h"

namespace gradq {

struct LayerShape {
  int64_t out_features = 0;
  int64_t in_features = 0;
  const char* layer = "";  // where it occurs, q + k + v and gate + up as one product
};

std::span<const LayerShape> LayerShapes();

// "14336x4096 8B gate, up"
std::string ShapeName(const LayerShape& shape);

// Shapes of whose name `regex` matches a part. INVALID_ARGUMENT when it is no regular expression or
// matches none.
absl::StatusOr<std::vector<LayerShape>> MatchShapes(const std::string& regex);

// What copies of a matrix take together, at least, so that none is in the cache when its turn comes
// again: more than 3 × `l2_bytes`, and 512 MiB.
int64_t ColdBytes(int64_t l2_bytes);

// The fewest copies of `bytes` each that take `cold_bytes` together; at least 1.
int64_t ColdCopies(int64_t bytes, int64_t cold_bytes);

// Products in a graph: at least 100, and whole turns, so that the next launch of the graph starts
// with the copy that was read longest ago.
int64_t GraphProducts(int64_t copies);

// Where the arrays of a matrix lie in one memory, each on 256 bytes.
struct CopyLayout {
  int64_t codes = 0;
  int64_t tables = 0;
  int64_t scales = 0;
  int64_t outlier_begin = 0;
  int64_t outliers = 0;
  int64_t bytes = 0;  // of one copy
};
CopyLayout LayoutOf(const kernels::TileMatrix& matrix);

// The arrays in that order; what lies between them is 0.
std::vector<char> CopyBytes(const kernels::TileMatrix& matrix, const CopyLayout& layout);

// `matrix` with its pointers into a copy at `base`; without `outliers` as if it had none.
kernels::TileView ViewOfCopy(const kernels::TileView& matrix, const CopyLayout& layout,
                             const char* base, bool outliers);

// What a product has to read of a matrix: TileMatrix::bytes() without where the outliers of single
// windows begin, which decoding alone needs, and without the outliers where they are left out.
int64_t ReadBytes(const kernels::TileMatrix& matrix, bool outliers);

}  // namespace gradq
