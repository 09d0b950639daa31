#pragma once

// The order in which CUDA kernels read a packed linear: 16 x 64 tiles whose codes lie as the lanes
// of a warp want them for the A operand of mma.m16n8k16. Written by lib/kernels/tile_matrix.cc,
// read by decode_fragment.cuh; C++17, for host and device.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4). Of a tile it holds the codes of rows g and g + 8 and
// of columns 16·t .. 16·t + 15: the columns of a tile are dealt to the mma's k positions so that a
// lane's are neighbours, which makes x a plain 32-byte load. mma number s = 0..3 of a tile covers
// columns 16·t + 4·s + {0, 1} at k = 2t, 2t + 1 and 16·t + 4·s + {2, 3} at k = 2t + 8, 2t + 9.
//
// A lane's 32 codes of a tile ("window") are `bits` words; kWindows windows make a chunk of whole
// 16-byte vectors: codes [row_tiles][chunks][vectors][32 lanes] of Words4.

#include <cstdint>

#if defined(__CUDACC__)
#define GRADQ_HOST_DEVICE __host__ __device__
#else
#define GRADQ_HOST_DEVICE
#endif

namespace gradq::kernels {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMmaRows = 16;  // of a row tile
inline constexpr int kWindowColumns = 64;
inline constexpr int kLaneColumns = 16;  // of a window, consecutive
// Outliers: columns that 12 bits reach, and entries that share an mma.
inline constexpr int64_t kOutlierRun = 4096;
inline constexpr int kOutlierGroup = 16;

enum class TileEncoding { kLut, kAffine };

// Widths that have kernels: 2, 3, 4 for both encodings, 8 for affine.
constexpr bool HasTileKernels(TileEncoding encoding, int bits) {
  return (bits >= 2 && bits <= 4) || (bits == 8 && encoding == TileEncoding::kAffine);
}

// Windows per chunk: the fewest whose words fill whole 16-byte vectors.
GRADQ_HOST_DEVICE constexpr int WindowsPerChunk(int bits) {
  return bits % 4 == 0 ? 1 : bits % 2 == 0 ? 2 : 4;
}
GRADQ_HOST_DEVICE constexpr int VectorsPerChunk(int bits) {
  return WindowsPerChunk(bits) * bits / 4;
}
GRADQ_HOST_DEVICE constexpr int ChunkColumns(int bits) {
  return WindowsPerChunk(bits) * kWindowColumns;
}

// Which nibble of a selector holds code j = 0..7 of a lane's octet. LUT decoding looks four
// neighbouring nibbles up at once; affine decoding cuts nibbles i and i + 4 out as the two halves
// of one half2, so neighbouring columns lie four nibbles apart.
GRADQ_HOST_DEVICE constexpr int NibbleOf(TileEncoding encoding, int j) {
  return encoding == TileEncoding::kLut ? j : j / 4 * 2 + j % 4 / 2 + j % 2 * 4;
}

struct CodeBit {
  int word = 0;
  int bit = 0;
};
// Where bit `i` of a code lies in its lane's window of `bits` words. `half` 0: row g, 1: row g + 8;
// j = 0..15 the column. Codes of 2 to 4 bits are read by way of "selectors", words of eight
// nibbles; selector q = 2·half + j / 8. At 2 bits two selectors share a word; at 3 bits the fourth
// is made of the spare top bits of the nibbles of the first three; at 8 bits codes are plain bytes.
GRADQ_HOST_DEVICE constexpr CodeBit PlaceOfCodeBit(TileEncoding encoding, int bits, int half, int j,
                                                   int i) {
  const int selector = 2 * half + j / 8;
  const int nibble = 4 * NibbleOf(encoding, j % 8);
  if (bits == 2) return {half, nibble + 2 * (j / 8) + i};
  if (bits == 3) return selector < 3 ? CodeBit{selector, nibble + i} : CodeBit{i, nibble + 3};
  if (bits == 4) return {selector, nibble + i};
  return {4 * half + j / 4, 8 * (j % 4) + i};
}

// 16 bytes that one lane loads.
struct alignas(16) Words4 {
  uint32_t word[4];
};

// What a kernel gets: sizes and pointers into one memory (the host's for the oracle, else the
// device's).
struct TileView {
  TileEncoding encoding = TileEncoding::kLut;
  int bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t row_tiles = 0;  // ceil(out / 16)
  int64_t chunks = 0;     // ceil(in / ChunkColumns(bits)); padding has code 0 and meets x = 0
  const Words4* codes = nullptr;
  // kLut: fp16 tables as byte planes, [row_tiles][16][low words, high words], 2^bits / 4 words of
  // four low bytes each and as many of high bytes. Rows beyond out_features are 0.
  const uint32_t* tables = nullptr;
  // kAffine: [row_tiles][groups][16]: fp16 bits of the scale below, fp16 bits of 1024 + zero point
  // above. group_size is a multiple of 16, so that a lane's columns of a window share them.
  const uint32_t* scales = nullptr;
  int64_t groups = 0;
  int64_t group_size = 0;
  // Outliers, in groups of 16: entry = column within the run (12 bits), row within the tile << 12,
  // fp16 value << 16; what is left of a group is 0, and kernels skip it. Groups
  // outlier_begin[tile · runs + run] .. outlier_begin[tile · runs + run + 1] - 1 belong to columns
  // run · 4096 .. of row tile `tile`, in order of (column / 64, row, column). `outlier_begin` null:
  // none. Behind its row_tiles · runs + 1 words: see OutlierWindows.
  const uint32_t* outlier_begin = nullptr;
  const uint32_t* outliers = nullptr;
  int64_t runs = 0;  // ceil(in / 4096)
};

// Columns in windows of 64, the last one partly filled.
GRADQ_HOST_DEVICE constexpr int64_t WindowsOf(const TileView& view) {
  return (view.in_features + kWindowColumns - 1) / kWindowColumns;
}

// Where the outliers of single windows lie, for kernels that add them to decoded weights: those of
// window w of tile `tile` are entries starts[tile · windows + w] .. starts[tile · windows + w + 1]
// - 1, among them what is left of a group (value 0). [row_tiles · windows + 1]
GRADQ_HOST_DEVICE inline const uint32_t* OutlierWindows(const TileView& view) {
  return view.outlier_begin + view.row_tiles * view.runs + 1;
}

}  // namespace gradq::kernels
