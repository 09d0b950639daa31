#include "lib/kernels/lut_matmul.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lib/base/status_macros.h"
#include "lib/kernels/float16.h"

namespace gradq::kernels {
namespace {

// Vectors of the tail read at most one vector beyond a row.
constexpr int64_t kPadBytes = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

// Words per lane of a block: 3-bit codes fill whole words only in threes. 0: this width is not
// blocked.
int64_t WordsPerLane(int bits) {
  if (bits == 3) return 3;
  return bits == 1 || bits == 2 || bits == 4 ? 1 : 0;
}

int64_t CodesPerLane(int bits) { return WordsPerLane(bits) * 32 / bits; }

uint32_t BitsAt(const uint32_t* words, int64_t bit, int bits) {
  const int64_t word = bit / 32;
  const int offset = static_cast<int>(bit % 32);
  uint64_t pair = words[word];
  if (offset + bits > 32) pair |= static_cast<uint64_t>(words[word + 1]) << 32;
  return static_cast<uint32_t>(pair >> offset) & ((1u << bits) - 1);
}

// Canonical words of one block of columns -> lanes.
void TransposeBlock(const uint32_t* canonical, int bits, uint32_t* lanes) {
  const int64_t codes = CodesPerLane(bits);
  const int64_t words = WordsPerLane(bits);
  for (int64_t lane = 0; lane < LutMatrix::kLanes; ++lane) {
    uint64_t buffer = 0;
    int filled = 0;
    int64_t word = 0;
    for (int64_t k = 0; k < codes; ++k) {
      buffer |=
          static_cast<uint64_t>(BitsAt(canonical, (k * LutMatrix::kLanes + lane) * bits, bits))
          << filled;
      filled += bits;
      if (filled < 32) continue;
      lanes[word++ * LutMatrix::kLanes + lane] = static_cast<uint32_t>(buffer);
      buffer >>= 32;
      filled -= 32;
    }
    GRADQ_CHECK(word == words && filled == 0);
  }
}

template <typename T>
T* Allocate(int64_t count) {
  const int64_t bytes = count * int64_t{sizeof(T)} + kPadBytes;
  // Reading codes in order touches a new page every few hundred nanoseconds: large ones save most
  // of the page walks.
  const bool huge = bytes >= kHugePage;
  void* memory = std::aligned_alloc(huge ? kHugePage : 64, (bytes + 63) / 64 * 64);
  GRADQ_CHECK(memory != nullptr);
  if (huge) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  std::memset(static_cast<char*>(memory) + count * sizeof(T), 0, kPadBytes);
  return static_cast<T*>(memory);
}

}  // namespace

void LutMatrix::Free::operator()(void* memory) const { std::free(memory); }

LutMatrix::LutMatrix(std::span<const uint32_t> packed, std::span<const uint16_t> lut,
                     int64_t out_features, int64_t in_features, int bits, ThreadPool* pool)
    : out_features_(out_features),
      in_features_(in_features),
      stride_((in_features * bits + 31) / 32),
      bits_(bits) {
  GRADQ_CHECK(bits >= 1 && bits <= 8 && out_features >= 1 && in_features >= 1);
  GRADQ_CHECK(static_cast<int64_t>(packed.size()) == out_features * stride_);
  GRADQ_CHECK(static_cast<int64_t>(lut.size()) == out_features << bits);
  const int64_t block_columns = kLanes * CodesPerLane(bits);
  const int64_t block_words = kLanes * WordsPerLane(bits);
  const int64_t blocks = block_columns == 0 ? 0 : in_features / block_columns;
  blocked_columns_ = blocks * block_columns;
  packed_.reset(Allocate<uint32_t>(out_features * stride_));
  lut_.reset(Allocate<uint16_t>(static_cast<int64_t>(lut.size())));
  std::copy(lut.begin(), lut.end(), lut_.get());

  const auto convert_row = [&](int64_t r, int) {
    const uint32_t* from = packed.data() + r * stride_;
    uint32_t* to = packed_.get() + r * stride_;
    for (int64_t block = 0; block < blocks; ++block)
      TransposeBlock(from + block * block_words, bits, to + block * block_words);
    std::copy(from + blocks * block_words, from + stride_, to + blocks * block_words);
  };
  if (pool != nullptr) {
    pool->ParallelFor(out_features, convert_row);
  } else {
    for (int64_t r = 0; r < out_features; ++r) convert_row(r, 0);
  }
}

uint32_t LutMatrix::code(int64_t r, int64_t column) const {
  if (column >= blocked_columns_) return BitsAt(row(r), column * bits_, bits_);
  const int64_t block_columns = kLanes * CodesPerLane(bits_);
  const uint32_t* block = row(r) + column / block_columns * kLanes * WordsPerLane(bits_);
  const int64_t lane = column % kLanes;
  uint32_t words[3] = {};
  for (int64_t w = 0; w < WordsPerLane(bits_); ++w) words[w] = block[w * kLanes + lane];
  return BitsAt(words, column % block_columns / kLanes * bits_, bits_);
}

int64_t LutMatrix::bytes() const {
  return out_features_ * stride_ * int64_t{sizeof(uint32_t)} +
         (out_features_ << bits_) * int64_t{sizeof(uint16_t)} + sparse_.bytes();
}

void LutMatmulReference(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x,
                        int64_t batch, float* y) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0;
      for (int64_t c = 0; c < matrix.in_features(); ++c) {
        sum += double{Float16ToFloat(matrix.table(r)[matrix.code(r, c)])} *
               x[b * matrix.in_features() + c];
      }
      matrix.sparse().ForRow(r, [&](int64_t column, float value) {
        sum += double{value} * x[b * matrix.in_features() + column];
      });
      y[b * matrix.out_features() + r] = static_cast<float>(sum);
    }
  }
}

void DequantizeLutRowsReference(const LutMatrix& matrix, int64_t begin, int64_t end, float* out) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < matrix.in_features(); ++c)
      *out++ = Float16ToFloat(matrix.table(r)[matrix.code(r, c)]);
    matrix.sparse().AddRow(r, out - matrix.in_features());
  }
}

}  // namespace gradq::kernels
