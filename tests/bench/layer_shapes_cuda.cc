#include "tests/bench/layer_shapes_cuda.h"

#include <algorithm>
#include <cstring>
#include <regex>

#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr LayerShape kShapes[] = {
    {12288, 4096, "7B q+k+v"},     {4096, 4096, "7B o, 8B q, o"}, {22016, 4096, "7B gate+up"},
    {11008, 4096, "7B gate, up"},  {4096, 11008, "7B down"},      {6144, 4096, "8B q+k+v"},
    {28672, 4096, "8B gate+up"},   {14336, 4096, "8B gate, up"},  {4096, 14336, "8B down"},
    {10240, 8192, "70B q+k+v"},    {8192, 8192, "70B q, o"},      {57344, 8192, "70B gate+up"},
    {28672, 8192, "70B gate, up"}, {8192, 28672, "70B down"},
};

constexpr int64_t kColdBytes = int64_t{512} << 20;
constexpr int64_t kGraphProducts = 100;
constexpr int64_t kAlignment = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::span<const LayerShape> LayerShapes() { return kShapes; }

std::string ShapeName(const LayerShape& shape) {
  return StrCat(shape.out_features, "x", shape.in_features, " ", shape.layer);
}

absl::StatusOr<std::vector<LayerShape>> MatchShapes(const std::string& regex) {
  std::regex pattern;
  try {
    pattern = std::regex(regex);
  } catch (const std::regex_error&) {
    return absl::InvalidArgumentError(StrCat("not a regular expression: ", regex));
  }
  std::vector<LayerShape> matches;
  std::string names;
  for (const LayerShape& shape : LayerShapes()) {
    const std::string name = ShapeName(shape);
    names += StrCat(names.empty() ? "" : "; ", name);
    if (std::regex_search(name, pattern)) matches.push_back(shape);
  }
  if (matches.empty()) {
    return absl::InvalidArgumentError(StrCat("no shape matches ", regex, ", there are: ", names));
  }
  return matches;
}

int64_t ColdBytes(int64_t l2_bytes) { return std::max(kColdBytes, 3 * l2_bytes + 1); }

int64_t ColdCopies(int64_t bytes, int64_t cold_bytes) {
  return std::max<int64_t>(1, CeilDiv(cold_bytes, bytes));
}

int64_t GraphProducts(int64_t copies) { return CeilDiv(kGraphProducts, copies) * copies; }

CopyLayout LayoutOf(const kernels::TileMatrix& matrix) {
  CopyLayout layout;
  const auto place = [&layout](size_t bytes) {
    const int64_t begin = layout.bytes;
    layout.bytes += CeilDiv(static_cast<int64_t>(bytes), kAlignment) * kAlignment;
    return begin;
  };
  layout.codes = place(matrix.codes().size_bytes());
  layout.tables = place(matrix.tables().size_bytes());
  layout.scales = place(matrix.scales().size_bytes());
  layout.outlier_begin = place(matrix.outlier_begin().size_bytes());
  layout.outliers = place(matrix.outliers().size_bytes());
  return layout;
}

std::vector<char> CopyBytes(const kernels::TileMatrix& matrix, const CopyLayout& layout) {
  std::vector<char> copy(static_cast<size_t>(layout.bytes));
  const auto write = [&copy](int64_t offset, auto array) {
    if (!array.empty()) std::memcpy(copy.data() + offset, array.data(), array.size_bytes());
  };
  write(layout.codes, matrix.codes());
  write(layout.tables, matrix.tables());
  write(layout.scales, matrix.scales());
  write(layout.outlier_begin, matrix.outlier_begin());
  write(layout.outliers, matrix.outliers());
  return copy;
}

kernels::TileView ViewOfCopy(const kernels::TileView& matrix, const CopyLayout& layout,
                             const char* base, bool outliers) {
  kernels::TileView view = matrix;
  const auto words = [base](int64_t offset) {
    return reinterpret_cast<const uint32_t*>(base + offset);
  };
  view.codes = reinterpret_cast<const kernels::Words4*>(base + layout.codes);
  view.tables = matrix.tables == nullptr ? nullptr : words(layout.tables);
  view.scales = matrix.scales == nullptr ? nullptr : words(layout.scales);
  const bool none = !outliers || matrix.outlier_begin == nullptr;
  view.outlier_begin = none ? nullptr : words(layout.outlier_begin);
  view.outliers = none ? nullptr : words(layout.outliers);
  return view;
}

int64_t ReadBytes(const kernels::TileMatrix& matrix, bool outliers) {
  const auto sparse =
      static_cast<int64_t>(matrix.outlier_begin().size_bytes() + matrix.outliers().size_bytes());
  if (!outliers || sparse == 0) return matrix.bytes() - sparse;
  const kernels::TileView view = matrix.view();
  const int64_t windows = view.row_tiles * kernels::WindowsOf(view) + 1;
  return matrix.bytes() - windows * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace gradq
