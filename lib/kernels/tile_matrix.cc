#include "lib/kernels/tile_matrix.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "lib/base/status_macros.h"

namespace gradq::kernels {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

void ForEach(ThreadPool* pool, int64_t count, absl::FunctionRef<void(int64_t)> body) {
  if (pool != nullptr) {
    pool->ParallelFor(count, [&](int64_t i, int) { body(i); });
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

TileView Sizes(TileEncoding encoding, int bits, int64_t out_features, int64_t in_features) {
  TileView sizes;
  sizes.encoding = encoding;
  sizes.bits = bits;
  sizes.out_features = out_features;
  sizes.in_features = in_features;
  sizes.row_tiles = CeilDiv(out_features, kMmaRows);
  sizes.chunks = CeilDiv(in_features, ChunkColumns(bits));
  sizes.runs = CeilDiv(in_features, kOutlierRun);
  return sizes;
}

// Moves the codes of one row and 16 columns, which are 2 · bits bytes of the canonical order, to
// their places in a lane's window, a byte at a time: a byte's bits go to at most three words.
class CodeSpreader {
 public:
  CodeSpreader(TileEncoding encoding, int bits) : bits_(bits), moves_(2 * 2 * bits) {
    for (int half = 0; half < 2; ++half) {
      for (int at = 0; at < kLaneColumns * bits; ++at) {
        const CodeBit place = PlaceOfCodeBit(encoding, bits, half, at / bits, at % bits);
        Move& move = moves_[half * 2 * bits + at / 8];
        int slot = 0;
        while (slot < move.words && move.word[slot] != place.word) ++slot;
        GRADQ_CHECK(slot < 3);
        move.word[slot] = place.word;
        move.words = std::max(move.words, slot + 1);
        for (int value = 0; value < 256; ++value) {
          if (value >> (at % 8) & 1) move.spread[slot][value] |= 1u << place.bit;
        }
      }
    }
  }

  // `window` [bits] begins as zeros in the places of `half`.
  void Spread(const uint8_t* canonical, int half, uint32_t* window) const {
    for (int byte = 0; byte < 2 * bits_; ++byte) {
      const Move& move = moves_[half * 2 * bits_ + byte];
      for (int i = 0; i < move.words; ++i) window[move.word[i]] |= move.spread[i][canonical[byte]];
    }
  }

 private:
  struct Move {
    int words = 0;
    int word[3] = {};
    uint32_t spread[3][256] = {};
  };
  int bits_;
  std::vector<Move> moves_;  // [half][byte]
};

// Words of one row, then zeros up to whole chunks.
std::vector<uint8_t> PaddedRow(std::span<const uint32_t> packed, const TileView& sizes, int64_t r) {
  const int64_t words = CeilDiv(sizes.in_features * sizes.bits, 32);
  const int64_t bits = sizes.in_features * sizes.bits;
  std::vector<uint8_t> row(sizes.chunks * ChunkColumns(sizes.bits) * sizes.bits / 8);
  std::memcpy(row.data(), packed.data() + r * words, words * sizeof(uint32_t));
  // Whatever a row's last word holds beyond its codes.
  for (int64_t bit = bits; bit < words * 32; ++bit)
    row[bit / 8] = static_cast<uint8_t>(row[bit / 8] & ~(1u << (bit % 8)));
  return row;
}

// `codes` of one row tile [chunks][vectors][32 lanes], zeros before.
void PackTile(std::span<const uint32_t> packed, const TileView& sizes, const CodeSpreader& spreader,
              int64_t tile, Words4* codes) {
  const int bits = sizes.bits;
  const int vectors = VectorsPerChunk(bits);
  const int lane_groups = ChunkColumns(bits) / kLaneColumns;
  const int64_t rows = std::min<int64_t>(kMmaRows, sizes.out_features - tile * kMmaRows);
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<uint8_t> row = PaddedRow(packed, sizes, tile * kMmaRows + r);
    for (int64_t i = 0; i < sizes.chunks * lane_groups; ++i) {
      const int64_t window = i % lane_groups / 4;
      const int64_t lane = r % 8 * 4 + i % 4;
      uint32_t words[8] = {};
      spreader.Spread(row.data() + i * 2 * bits, static_cast<int>(r / 8), words);
      Words4* chunk = codes + i / lane_groups * vectors * kWarpLanes;
      for (int w = 0; w < bits; ++w) {
        const int64_t at = window * bits + w;
        chunk[at / 4 * kWarpLanes + lane].word[at % 4] |= words[w];
      }
    }
  }
}

std::vector<Words4> PackCodes(std::span<const uint32_t> packed, const TileView& sizes,
                              ThreadPool* pool) {
  const CodeSpreader spreader(sizes.encoding, sizes.bits);
  const int64_t tile_size = sizes.chunks * VectorsPerChunk(sizes.bits) * kWarpLanes;
  std::vector<Words4> codes(sizes.row_tiles * tile_size);
  ForEach(pool, sizes.row_tiles, [&](int64_t tile) {
    PackTile(packed, sizes, spreader, tile, codes.data() + tile * tile_size);
  });
  return codes;
}

// Calls use(row within the tile, column, fp16 bits of the value) in order.
void ForTileOutliers(const SparseRows& sparse, const TileView& sizes, int64_t tile,
                     absl::FunctionRef<void(int64_t, int64_t, uint16_t)> use) {
  const int64_t rows = std::min<int64_t>(kMmaRows, sizes.out_features - tile * kMmaRows);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* row_ptr = sparse.row_ptr(tile * kMmaRows + r);
    for (int64_t run = 0; run < sparse.runs(); ++run) {
      for (int64_t i = row_ptr[run]; i < row_ptr[run + 1]; ++i)
        use(r, run * SparseRows::kRun + sparse.col()[i], sparse.value()[i]);
    }
  }
}

// Sorts the entries of one tile and run by (window, row, column), and adds up the entries per
// window in `counts`.
void SortByWindow(uint32_t* entries, uint32_t count, uint32_t* counts) {
  const auto key = [](uint32_t entry) {
    return (entry & 0xfff) / kWindowColumns << 16 | (entry & 0xffff);
  };
  std::sort(entries, entries + count, [&](uint32_t a, uint32_t b) { return key(a) < key(b); });
  for (uint32_t i = 0; i < count; ++i) ++counts[(entries[i] & 0xfff) / kWindowColumns];
}

// Arrays `outlier_begin` (with what is behind it) and `outliers` of TileView.
void PackOutliers(const SparseRows& sparse, const TileView& sizes, ThreadPool* pool,
                  std::vector<uint32_t>* begin, std::vector<uint32_t>* outliers) {
  std::vector<uint32_t> counts(sizes.row_tiles * sizes.runs);
  ForEach(pool, sizes.row_tiles, [&](int64_t tile) {
    ForTileOutliers(sparse, sizes, tile, [&](int64_t, int64_t column, uint16_t) {
      ++counts[tile * sizes.runs + column / kOutlierRun];
    });
  });
  const int64_t windows = WindowsOf(sizes);
  const int64_t lists = std::ssize(counts);
  begin->assign(lists + 1 + sizes.row_tiles * windows + 1, 0);
  for (size_t i = 0; i < counts.size(); ++i) {
    (*begin)[i + 1] =
        (*begin)[i] + (counts[i] + uint32_t{kOutlierGroup} - 1) / uint32_t{kOutlierGroup};
  }
  outliers->assign(int64_t{(*begin)[lists]} * kOutlierGroup, 0);
  uint32_t* starts = begin->data() + lists + 1;
  starts[sizes.row_tiles * windows] = static_cast<uint32_t>(outliers->size());
  ForEach(pool, sizes.row_tiles, [&](int64_t tile) {
    std::vector<uint32_t> filled(sizes.runs);
    ForTileOutliers(sparse, sizes, tile, [&](int64_t r, int64_t column, uint16_t value) {
      const int64_t run = column / kOutlierRun;
      const int64_t at = int64_t{(*begin)[tile * sizes.runs + run]} * kOutlierGroup + filled[run]++;
      (*outliers)[at] = static_cast<uint32_t>(column % kOutlierRun) |
                        static_cast<uint32_t>(r) << 12 | static_cast<uint32_t>(value) << 16;
    });
    constexpr int64_t kRunWindows = kOutlierRun / kWindowColumns;
    for (int64_t run = 0; run < sizes.runs; ++run) {
      uint32_t at = (*begin)[tile * sizes.runs + run] * kOutlierGroup;
      uint32_t in_window[kRunWindows] = {};
      SortByWindow(outliers->data() + at, filled[run], in_window);
      for (int64_t w = run * kRunWindows; w < std::min(windows, (run + 1) * kRunWindows); ++w) {
        starts[tile * windows + w] = at;
        at += in_window[w % kRunWindows];
      }
    }
  });
}

}  // namespace

TileMatrix TileMatrix::FromLut(std::span<const uint32_t> packed, std::span<const uint16_t> lut,
                               const SparseRows& sparse, int64_t out_features, int64_t in_features,
                               int bits, ThreadPool* pool) {
  GRADQ_CHECK(HasTileKernels(TileEncoding::kLut, bits) && out_features >= 1 && in_features >= 1);
  GRADQ_CHECK(static_cast<int64_t>(packed.size()) ==
              out_features * CeilDiv(in_features * bits, 32));
  GRADQ_CHECK(static_cast<int64_t>(lut.size()) == out_features << bits);
  TileMatrix matrix;
  matrix.sizes_ = Sizes(TileEncoding::kLut, bits, out_features, in_features);
  matrix.codes_ = PackCodes(packed, matrix.sizes_, pool);
  const int64_t entries = int64_t{1} << bits;
  const int64_t plane_words = entries / 4;
  matrix.tables_.assign(matrix.sizes_.row_tiles * kMmaRows * 2 * plane_words, 0);
  for (int64_t r = 0; r < out_features; ++r) {
    uint32_t* low = matrix.tables_.data() + r * 2 * plane_words;
    uint32_t* high = low + plane_words;
    for (int64_t e = 0; e < entries; ++e) {
      const uint32_t value = lut[r * entries + e];
      low[e / 4] |= (value & 0xff) << (e % 4 * 8);
      high[e / 4] |= value >> 8 << (e % 4 * 8);
    }
  }
  if (!sparse.empty())
    PackOutliers(sparse, matrix.sizes_, pool, &matrix.outlier_begin_, &matrix.outliers_);
  return matrix;
}

TileMatrix TileMatrix::FromAffine(std::span<const uint32_t> packed, std::span<const uint16_t> scale,
                                  std::span<const uint8_t> zero_point, const SparseRows& sparse,
                                  int64_t out_features, int64_t in_features, int bits,
                                  int64_t group_size, ThreadPool* pool) {
  GRADQ_CHECK(HasTileKernels(TileEncoding::kAffine, bits) && out_features >= 1 && in_features >= 1);
  GRADQ_CHECK(group_size >= kLaneColumns && group_size % kLaneColumns == 0);
  const int64_t groups = CeilDiv(in_features, group_size);
  GRADQ_CHECK(static_cast<int64_t>(packed.size()) ==
              out_features * CeilDiv(in_features * bits, 32));
  GRADQ_CHECK(static_cast<int64_t>(scale.size()) == out_features * groups);
  GRADQ_CHECK(zero_point.size() == scale.size());
  TileMatrix matrix;
  matrix.sizes_ = Sizes(TileEncoding::kAffine, bits, out_features, in_features);
  matrix.sizes_.groups = groups;
  matrix.sizes_.group_size = group_size;
  matrix.codes_ = PackCodes(packed, matrix.sizes_, pool);
  matrix.scales_.assign(matrix.sizes_.row_tiles * groups * kMmaRows, 0);
  for (int64_t r = 0; r < out_features; ++r) {
    for (int64_t k = 0; k < groups; ++k) {
      // fp16 bits of 1024 + n are 0x6400 + n below 2048.
      const uint32_t zero = 0x6400u + zero_point[r * groups + k];
      matrix.scales_[(r / kMmaRows * groups + k) * kMmaRows + r % kMmaRows] =
          scale[r * groups + k] | zero << 16;
    }
  }
  if (!sparse.empty())
    PackOutliers(sparse, matrix.sizes_, pool, &matrix.outlier_begin_, &matrix.outliers_);
  return matrix;
}

TileView TileMatrix::view() const {
  TileView view = sizes_;
  view.codes = codes_.data();
  view.tables = tables_.empty() ? nullptr : tables_.data();
  view.scales = scales_.empty() ? nullptr : scales_.data();
  view.outlier_begin = outlier_begin_.empty() ? nullptr : outlier_begin_.data();
  view.outliers = outliers_.empty() ? nullptr : outliers_.data();
  return view;
}

int64_t TileMatrix::bytes() const {
  return static_cast<int64_t>(
      codes_.size() * sizeof(Words4) +
      (tables_.size() + scales_.size() + outlier_begin_.size() + outliers_.size()) *
          sizeof(uint32_t));
}

int64_t TileMatrixBytes(TileEncoding encoding, int bits, int64_t out_features, int64_t in_features,
                        int64_t group_size, int64_t outliers) {
  const TileView sizes = Sizes(encoding, bits, out_features, in_features);
  const int64_t codes =
      sizes.row_tiles * sizes.chunks * VectorsPerChunk(bits) * kWarpLanes * int64_t{sizeof(Words4)};
  const int64_t rows = sizes.row_tiles * kMmaRows;
  const int64_t numbers = encoding == TileEncoding::kLut
                              ? (rows << bits) * int64_t{sizeof(uint16_t)}
                              : rows * CeilDiv(in_features, group_size) * int64_t{sizeof(uint32_t)};
  if (outliers == 0) return codes + numbers;
  const int64_t lists = sizes.row_tiles * sizes.runs;
  const int64_t starts = sizes.row_tiles * WindowsOf(sizes) + 1;
  const int64_t words =
      lists + 1 + starts + outliers + (kOutlierGroup - 1) * std::min(outliers, lists);
  return codes + numbers + words * int64_t{sizeof(uint32_t)};
}

}  // namespace gradq::kernels
