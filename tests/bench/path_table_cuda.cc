#include "tests/bench/path_table_cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "lib/kernels/tile_matmul.h"

namespace gradq {
namespace {

using kernels::TileEncoding;
using kernels::TilePath;
using kernels::TilePathRow;

TilePath PathOf(const TilePathRow& row, int64_t batch) {
  if (batch <= row.matvec_batch) return TilePath::kMatvec;
  return batch <= row.matmul_batch ? TilePath::kMatmul : TilePath::kDequantize;
}

// Seconds of the paths of one layer and batch.
using PathTimes = std::map<std::string_view, double>;
// By (layer, batch); of one encoding and width.
using ProductTimes = std::map<std::pair<std::string_view, int64_t>, PathTimes>;

// Nothing when a path that `row` takes was not timed.
std::optional<FittedPathRow> Judge(const TilePathRow& row, const ProductTimes& products) {
  FittedPathRow fitted = {row, 1, 1};
  double logs = 0;
  for (const auto& [product, times] : products) {
    const auto taken = times.find(PathName(PathOf(row, product.second)));
    if (taken == times.end()) return std::nullopt;
    double fastest = std::numeric_limits<double>::infinity();
    for (const auto& [path, seconds] : times) fastest = std::min(fastest, seconds);
    const double slowdown = taken->second / fastest;
    logs += std::log(slowdown);
    fitted.worst_slowdown = std::max(fitted.worst_slowdown, slowdown);
  }
  fitted.mean_slowdown = std::exp(logs / static_cast<double>(products.size()));
  return fitted;
}

std::optional<FittedPathRow> Fit(TileEncoding encoding, int bits, const ProductTimes& products) {
  std::set<int64_t> batches = {0};
  for (const auto& [product, times] : products) batches.insert(product.second);
  std::optional<FittedPathRow> best;
  for (const int64_t matvec : batches) {
    if (matvec > kernels::kTileMatvecBatch) break;
    for (const int64_t matmul : batches) {
      if (matmul < matvec || matmul > kernels::kTileMatmulBatch) continue;
      const auto fitted = Judge({encoding, bits, matvec, matmul}, products);
      if (!fitted.has_value()) continue;
      if (!best.has_value() || fitted->mean_slowdown <= best->mean_slowdown) best = fitted;
    }
  }
  return best;
}

const char* EncodingConstant(TileEncoding encoding) {
  return encoding == TileEncoding::kLut ? "kLut" : "kAffine";
}

}  // namespace

const char* PathName(TilePath path) {
  switch (path) {
    case TilePath::kMatvec:
      return "matvec";
    case TilePath::kMatmul:
      return "matmul";
    case TilePath::kDequantize:
      break;
  }
  return "dequantize";
}

std::vector<PathChoice> FastestPaths(std::span<const ProductRow> rows) {
  std::vector<PathChoice> choices;
  for (const ProductRow& row : rows) {
    if (row.outlier_percent > 0) continue;
    const auto same = [&row](const PathChoice& choice) {
      return choice.fastest->encoding == row.encoding && choice.fastest->bits == row.bits &&
             choice.fastest->shape == row.shape && choice.fastest->batch == row.batch;
    };
    auto choice = std::find_if(choices.begin(), choices.end(), same);
    if (choice == choices.end()) choice = choices.insert(choices.end(), {&row, nullptr});
    if (row.seconds < choice->fastest->seconds) choice->fastest = &row;
    if (row.chosen) choice->chosen = &row;
  }
  std::stable_sort(choices.begin(), choices.end(), [](const PathChoice& a, const PathChoice& b) {
    return a.fastest->bits < b.fastest->bits;
  });
  return choices;
}

std::vector<FittedPathRow> FitPathTable(std::span<const ProductRow> rows) {
  std::map<std::pair<TileEncoding, int>, ProductTimes> tables;
  for (const ProductRow& row : rows) {
    if (row.outlier_percent > 0) continue;
    tables[{row.encoding, row.bits}][{row.shape, row.batch}][row.path] = row.seconds;
  }
  std::vector<FittedPathRow> fitted;
  for (const auto& [key, products] : tables) {
    const auto best = Fit(key.first, key.second, products);
    if (best.has_value()) fitted.push_back(*best);
  }
  return fitted;
}

std::string PathTableText(std::span<const ProductRow> rows) {
  std::string text = "\nrows for lib/kernels/tile_path.cc\n";
  for (const FittedPathRow& fitted : FitPathTable(rows)) {
    text += absl::StrFormat(
        "    {TileEncoding::%s, %d, %d, %d},  // mean %.3f x the fastest, worst %.2f x\n",
        EncodingConstant(fitted.row.encoding), fitted.row.bits, fitted.row.matvec_batch,
        fitted.row.matmul_batch, fitted.mean_slowdown, fitted.worst_slowdown);
  }
  text += "\nfastest path of each product\n";
  for (const PathChoice& choice : FastestPaths(rows)) {
    const ProductRow& row = *choice.fastest;
    text += absl::StrFormat("%s %d, %s, batch %d: %s %.2f us", EncodingConstant(row.encoding),
                            row.bits, row.shape, row.batch, row.path, row.seconds * 1e6);
    if (choice.chosen != nullptr && choice.chosen != &row) {
      text += absl::StrFormat("; CHOSEN %s takes %.2f x", choice.chosen->path,
                              choice.chosen->seconds / row.seconds);
    }
    text += "\n";
  }
  return text;
}

}  // namespace gradq
