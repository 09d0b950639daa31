// Vector code of lut_matmul.h, compiled for AVX2 and AVX-512 and chosen at run time. A table of up
// to 16 (8) entries lives in one register and a permutation looks up 16 (8) codes at once; it reads
// only the lowest 4 (3) bits of each index, so codes are shifted but never masked.

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <cstring>

#include "lib/base/status_macros.h"
#include "lib/kernels/lut_matmul.h"

// Machines without AVX2 take the plain loops; no vector code is made for them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/lut_matmul_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "lib/kernels/sparse_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using U = hn::Rebind<uint32_t, F>;
using I = hn::Rebind<int32_t, F>;
using VF = hn::Vec<F>;
using VU = hn::Vec<U>;

constexpr int kVector = HWY_TARGET == HWY_AVX2 ? 8 : 16;
// Vectors per block of 16 lanes.
constexpr int kParts = static_cast<int>(LutMatrix::kLanes) / kVector;
// Independent sums per output, to cover the latency of the fused multiply-add. The same for every
// batch: an output must not depend on it.
constexpr int kSums = 4;
// Least distance, in words, at which memory is asked for ahead of decoding.
constexpr int64_t kPrefetchWords = 512;
// Rows of weights that share loads of a single row of x, as many as the registers hold sums for.
constexpr int kRowsTogether = HWY_TARGET == HWY_AVX2 ? 1 : 4;
// Rows of x that share one pass over the codes, as many as the registers hold sums for.
constexpr int kGroup = HWY_TARGET == HWY_AVX2 ? 2 : 4;

HWY_INLINE VF Permute(VF table, VU index) {
#if HWY_IS_DEBUG_BUILD
  index = hn::And(index,
                  hn::Set(U(), kVector - 1));  // debug builds assert what the instruction ignores
#endif
  return hn::TableLookupLanes(table, hn::IndicesFromVec(F(), index));
}

// 2^bits entries repeated over a vector.
HWY_INLINE VF LoadRepeated(const uint16_t* table, int bits) {
  const hn::Rebind<hwy::float16_t, F> half;
  const hn::RebindToUnsigned<decltype(half)> d16;
  if (bits == 1) {
    uint32_t pair;
    std::memcpy(&pair, table, sizeof(pair));
    return hn::PromoteTo(
        F(), hn::BitCast(half, hn::Set(hn::Repartition<uint32_t, decltype(half)>(), pair)));
  }
  if (bits == 2) {
    uint64_t four;
    std::memcpy(&four, table, sizeof(four));
    return hn::PromoteTo(
        F(), hn::BitCast(half, hn::Set(hn::Repartition<uint64_t, decltype(half)>(), four)));
  }
  if (bits == 3) return hn::PromoteTo(F(), hn::BitCast(half, hn::LoadDup128(d16, table)));
  return hn::PromoteTo(F(), hn::BitCast(half, hn::LoadU(d16, table)));
}

// The table of one row. Lookup takes vectors of words whose lowest kBits bits are codes, whatever
// is above them.
template <int kBits>
class RowTable {
 public:
  HWY_INLINE void Load(const uint16_t* table) {
    if constexpr (kBits <= 4) {
      low_ = LoadRepeated(table, kBits);
      high_ = low_;
      if constexpr (kBits == 4 && kVector == 8) high_ = LoadRepeated(table + 8, kBits);
      if constexpr (kBits == 2 && kVector == 16)
        high_ = Permute(low_, hn::ShiftRight<2>(hn::Iota(U(), 0)));
    } else {
      const hn::Rebind<hwy::float16_t, F> half;
      const hn::RebindToUnsigned<decltype(half)> d16;
      for (int i = 0; i < 1 << kBits; i += kVector) {
        hn::StoreU(hn::PromoteTo(F(), hn::BitCast(half, hn::LoadU(d16, table + i))), F(),
                   entries_ + i);
      }
    }
  }

  HWY_INLINE VF Lookup(VU codes) const {
    if constexpr (kBits == 4 && kVector == 8) {
      return hn::IfNegativeThenElse(hn::BitCast(F(), hn::ShiftLeft<28>(codes)),
                                    Permute(high_, codes), Permute(low_, codes));
    } else if constexpr (kBits <= 4) {
      return Permute(low_, codes);
    } else {
      const VU index = hn::And(codes, hn::Set(U(), (1u << kBits) - 1));
      return hn::GatherIndex(F(), entries_, hn::BitCast(I(), index));
    }
  }

  // Of the codes in bits 2 and 3: with 2-bit codes a 4-bit index holds two, so that one shift
  // serves two lookups.
  HWY_INLINE VF LookupSecond(VU codes) const { return Permute(high_, codes); }

 private:
  VF low_, high_;
  float entries_[kBits <= 4 ? 1 : 1 << kBits];
};

// Where decoded weights go. At(column) is fetched once and then given to Add with the weights of
// each of the rows that are decoded together, columns [column, column + kVector); kSum cycles
// through 0 .. kSums - 1.

// Products of kRows rows of weights with kBatch rows of x.
template <int kRows, int kBatch>
class DotSink {
 public:
  // x there. One load serves all rows: loads, not arithmetic, are what one row at a time waits for.
  struct Place {
    VF x[kBatch];
  };

  HWY_INLINE DotSink(const float* x, int64_t stride) {
    for (int b = 0; b < kBatch; ++b) x_[b] = x + b * stride;
    for (auto& row : sum_) {
      for (auto& of_x : row) {
        for (VF& sum : of_x) sum = hn::Zero(F());
      }
    }
  }
  HWY_INLINE Place At(int64_t column) const {
    Place place;
    for (int b = 0; b < kBatch; ++b) place.x[b] = hn::LoadU(F(), x_[b] + column);
    return place;
  }
  // `count` columns; zero beyond.
  HWY_INLINE Place AtPart(int64_t column, int64_t count) const {
    const auto mask = hn::FirstN(F(), static_cast<size_t>(count));
    Place place;
    for (int b = 0; b < kBatch; ++b) place.x[b] = hn::MaskedLoad(mask, F(), x_[b] + column);
    return place;
  }
  template <int kSum>
  HWY_INLINE void Add(int r, const Place& place, VF weight) {
    for (int b = 0; b < kBatch; ++b) {
      sum_[r][b][kSum] = hn::MulAdd(weight, place.x[b], sum_[r][b][kSum]);
    }
  }
  // The sparse part of row `row`, which stands at place r here.
  HWY_INLINE void AddSparse(const SparseRows& sparse, int64_t row, int r) {
    VF sum[kBatch];
    for (int b = 0; b < kBatch; ++b) sum[b] = sum_[r][b][kSums - 1];
    AddSparseRow<kBatch>(sparse, row, x_, sum);
    for (int b = 0; b < kBatch; ++b) sum_[r][b][kSums - 1] = sum[b];
  }
  HWY_INLINE float Total(int r, int b) const {
    const VF* sum = sum_[r][b];
    const VF total = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
    return hn::GetLane(hn::SumOfLanes(F(), total));
  }

 private:
  const float* x_[kBatch];
  VF sum_[kRows][kBatch][kSums];
};

// One row into memory.
class StoreSink {
 public:
  struct Place {
    float* to;
    int64_t count;
  };

  HWY_INLINE explicit StoreSink(float* out) : out_(out) {}
  HWY_INLINE Place At(int64_t column) const { return {out_ + column, kVector}; }
  HWY_INLINE Place AtPart(int64_t column, int64_t count) const { return {out_ + column, count}; }
  template <int kSum>
  HWY_INLINE void Add(int, const Place& place, VF weight) {
    if (place.count == kVector) {
      hn::StoreU(weight, F(), place.to);
    } else {
      hn::BlendedStore(weight, hn::FirstN(F(), static_cast<size_t>(place.count)), F(), place.to);
    }
  }

 private:
  float* out_;
};

// Decoding leaves too few loads in flight for the memory's latency, and the machine's own
// prefetcher stops at pages. Beyond the matrix this reads nothing and faults nowhere.
template <int kRows>
HWY_INLINE void Prefetch(const uint32_t* const* rows, int64_t word, int64_t ahead) {
  for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + word + ahead, 0, 2);
}

// Words ahead at which kRows rows at a time are asked for. Not whole groups of rows: their distance
// may be a power of two, where cache sets collide.
HWY_INLINE int64_t PrefetchDistance(const LutMatrix& matrix, int rows) {
  return std::max(kPrefetchWords, rows * matrix.stride() * 3 / 2);
}

// What Prefetch will not ask for because it lies before its distance.
HWY_INLINE void PrefetchFirst(const LutMatrix& matrix, int64_t row, int64_t distance) {
  for (int64_t word = 0; word < distance; word += LutMatrix::kLanes) {
    __builtin_prefetch(matrix.row(row) + word, 0, 2);
  }
}

template <int kRows>
HWY_INLINE void LoadWords(const uint32_t* const* rows, int64_t word, VU* words) {
  for (int r = 0; r < kRows; ++r) words[r] = hn::LoadU(U(), rows[r] + word);
}

// Codes kFirst, kFirst + 1, ... kLast - 1 of each lane of the rows' `words`, the first at bit
// kShift.
template <int kBits, int kFirst, int kLast, int kShift, int kRows, class Sink>
HWY_INLINE void UseWord(const RowTable<kBits>* tables, const VU* words, int64_t column,
                        Sink& sink) {
  if constexpr (kFirst < kLast) {
    constexpr bool kTwo = kBits == 2 && kVector == 16;
    constexpr int kNext = kFirst + (kTwo ? 2 : 1);
    const auto first = sink.At(column + kFirst * LutMatrix::kLanes);
    const auto second = sink.At(column + (kNext - 1) * LutMatrix::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const VU codes = hn::ShiftRight<kShift>(words[r]);
      sink.template Add<kFirst % kSums>(r, first, tables[r].Lookup(codes));
      if constexpr (kTwo) {
        sink.template Add<(kFirst + 1) % kSums>(r, second, tables[r].LookupSecond(codes));
      }
    }
    UseWord<kBits, kNext, kLast, kShift + (kNext - kFirst) * kBits, kRows>(tables, words, column,
                                                                           sink);
  }
}

template <int kBits, int kRows, class Sink>
HWY_INLINE void DecodeBlocks(const RowTable<kBits>* tables, const uint32_t* const* rows,
                             int64_t columns, int64_t ahead, Sink& sink) {
  constexpr int64_t kLanes = LutMatrix::kLanes;
  if constexpr (kBits == 3) {
    // 32 codes in three words; codes 10 and 21 cross from one word to the next.
    VU w0[kRows], w1[kRows], w2[kRows], crossing[kRows];
    for (int64_t column = 0, word = 0; column < columns;
         column += 32 * kLanes, word += 3 * kLanes) {
      for (int w = 0; w < 3; ++w) Prefetch<kRows>(rows, word + w * kLanes, ahead);
      for (int part = 0; part < kParts; ++part) {
        const int64_t from = word + part * kVector;
        const int64_t at = column + part * kVector;
        LoadWords<kRows>(rows, from, w0);
        UseWord<3, 0, 10, 0, kRows>(tables, w0, at, sink);
        LoadWords<kRows>(rows, from + kLanes, w1);
        for (int r = 0; r < kRows; ++r) {
          crossing[r] = hn::Or(hn::ShiftRight<30>(w0[r]), hn::ShiftLeft<2>(w1[r]));
        }
        UseWord<3, 10, 11, 0, kRows>(tables, crossing, at, sink);
        UseWord<3, 11, 21, 1, kRows>(tables, w1, at, sink);
        LoadWords<kRows>(rows, from + 2 * kLanes, w2);
        for (int r = 0; r < kRows; ++r) {
          crossing[r] = hn::Or(hn::ShiftRight<31>(w1[r]), hn::ShiftLeft<1>(w2[r]));
        }
        UseWord<3, 21, 22, 0, kRows>(tables, crossing, at, sink);
        UseWord<3, 22, 32, 2, kRows>(tables, w2, at, sink);
      }
    }
  } else if constexpr (kBits <= 4) {
    constexpr int kCodes = 32 / kBits;
    VU words[kRows];
    for (int64_t column = 0, word = 0; column < columns;
         column += kCodes * kLanes, word += kLanes) {
      Prefetch<kRows>(rows, word, ahead);
      for (int part = 0; part < kParts; ++part) {
        LoadWords<kRows>(rows, word + part * kVector, words);
        UseWord<kBits, 0, kCodes, 0, kRows>(tables, words, column + part * kVector, sink);
      }
    }
  }
}

// Columns [begin, end) in canonical order; begin is a multiple of kVector, whose codes start on a
// byte.
template <int kBits, int kRows, class Sink>
HWY_INLINE void DecodeTail(const RowTable<kBits>* tables, const uint32_t* const* rows,
                           int64_t begin, int64_t end, Sink& sink) {
  const VU bit = hn::Mul(hn::Iota(U(), 0), hn::Set(U(), kBits));
  const auto offset = hn::BitCast(I(), hn::ShiftRight<3>(bit));
  const VU shift = hn::And(bit, hn::Set(U(), 7));
  for (int64_t column = begin; column < end; column += kVector) {
    const auto place =
        end - column >= kVector ? sink.At(column) : sink.AtPart(column, end - column);
    for (int r = 0; r < kRows; ++r) {
      const char* from = reinterpret_cast<const char*>(rows[r]) + column * kBits / 8;
      const auto words = hn::GatherOffset(I(), reinterpret_cast<const int32_t*>(from), offset);
      const VU codes = hn::Shr(hn::BitCast(U(), words), shift);
      sink.template Add<0>(r, place, tables[r].Lookup(codes));
    }
  }
}

// Rows [first, first + kRows).
template <int kBits, int kRows, class Sink>
HWY_INLINE void DecodeRows(const LutMatrix& matrix, int64_t first, Sink& sink) {
  RowTable<kBits> tables[kRows];
  const uint32_t* rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    tables[r].Load(matrix.table(first + r));
    rows[r] = matrix.row(first + r);
  }
  const int64_t ahead = PrefetchDistance(matrix, kRows);
  DecodeBlocks<kBits, kRows>(tables, rows, matrix.blocked_columns(), ahead, sink);
  DecodeTail<kBits, kRows>(tables, rows, matrix.blocked_columns(), matrix.in_features(), sink);
}

// kSparse: with outliers. Apart, so that without them no code that indexes the sums keeps them out
// of registers.
template <int kBits, int kRows, int kBatch, bool kSparse>
HWY_INLINE void DotTile(const LutMatrix& matrix, int64_t first, const float* x, int64_t x_stride,
                        float* y) {
  DotSink<kRows, kBatch> sink(x, x_stride);
  if constexpr (kSparse) PrefetchSparse(matrix.sparse(), first, kRows);
  DecodeRows<kBits, kRows>(matrix, first, sink);
  if constexpr (kSparse) {
    for (int r = 0; r < kRows; ++r) sink.AddSparse(matrix.sparse(), first + r, r);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBatch; ++b) y[b * matrix.out_features() + first + r] = sink.Total(r, b);
  }
}

template <int kBits, int kBatch, bool kSparse>
HWY_INLINE void DotRows(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x,
                        int64_t x_stride, float* y) {
  // A batch has registers for one row only; tables of 5 and more bits lie in memory.
  constexpr int kRows = kBatch == 1 && kBits <= 4 ? kRowsTogether : 1;
  PrefetchFirst(matrix, begin, PrefetchDistance(matrix, kRows));
  int64_t r = begin;
  for (; r + kRows <= end; r += kRows)
    DotTile<kBits, kRows, kBatch, kSparse>(matrix, r, x, x_stride, y);
  for (; r < end; ++r) DotTile<kBits, 1, kBatch, kSparse>(matrix, r, x, x_stride, y);
}

template <int kBits, bool kSparse>
void DotBatch(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x, int64_t x_stride,
              int64_t batch, float* y) {
  const int64_t y_stride = matrix.out_features();
  int64_t b = 0;
  for (; b + kGroup <= batch; b += kGroup) {
    DotRows<kBits, kGroup, kSparse>(matrix, begin, end, x + b * x_stride, x_stride,
                                    y + b * y_stride);
  }
  for (; b < batch; ++b) {
    DotRows<kBits, 1, kSparse>(matrix, begin, end, x + b * x_stride, x_stride, y + b * y_stride);
  }
}

template <int kBits>
void Dot(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x, int64_t x_stride,
         int64_t batch, float* y) {
  if (matrix.sparse().empty()) {
    DotBatch<kBits, false>(matrix, begin, end, x, x_stride, batch, y);
  } else {
    DotBatch<kBits, true>(matrix, begin, end, x, x_stride, batch, y);
  }
}

template <int kBits>
void Dequantize(const LutMatrix& matrix, int64_t begin, int64_t end, float* out) {
  for (int64_t r = begin; r < end; ++r) {
    StoreSink sink(out + (r - begin) * matrix.in_features());
    DecodeRows<kBits, 1>(matrix, r, sink);
    matrix.sparse().AddRow(r, out + (r - begin) * matrix.in_features());
  }
}

void DotAnyBits(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x,
                int64_t x_stride, int64_t batch, float* y) {
  switch (matrix.bits()) {
    case 1:
      return Dot<1>(matrix, begin, end, x, x_stride, batch, y);
    case 2:
      return Dot<2>(matrix, begin, end, x, x_stride, batch, y);
    case 3:
      return Dot<3>(matrix, begin, end, x, x_stride, batch, y);
    case 4:
      return Dot<4>(matrix, begin, end, x, x_stride, batch, y);
    case 5:
      return Dot<5>(matrix, begin, end, x, x_stride, batch, y);
    case 6:
      return Dot<6>(matrix, begin, end, x, x_stride, batch, y);
    case 7:
      return Dot<7>(matrix, begin, end, x, x_stride, batch, y);
    case 8:
      return Dot<8>(matrix, begin, end, x, x_stride, batch, y);
  }
}

void DequantizeAnyBits(const LutMatrix& matrix, int64_t begin, int64_t end, float* out) {
  switch (matrix.bits()) {
    case 1:
      return Dequantize<1>(matrix, begin, end, out);
    case 2:
      return Dequantize<2>(matrix, begin, end, out);
    case 3:
      return Dequantize<3>(matrix, begin, end, out);
    case 4:
      return Dequantize<4>(matrix, begin, end, out);
    case 5:
      return Dequantize<5>(matrix, begin, end, out);
    case 6:
      return Dequantize<6>(matrix, begin, end, out);
    case 7:
      return Dequantize<7>(matrix, begin, end, out);
    case 8:
      return Dequantize<8>(matrix, begin, end, out);
  }
}

uint32_t Sum(const uint32_t* words, int64_t count) {
  VU sums[4] = {hn::Zero(U()), hn::Zero(U()), hn::Zero(U()), hn::Zero(U())};
  int64_t i = 0;
  for (; i + 4 * kVector <= count; i += 4 * kVector) {
    for (int s = 0; s < 4; ++s) sums[s] = hn::Add(sums[s], hn::LoadU(U(), words + i + s * kVector));
  }
  const VU sum = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  uint32_t total = hn::GetLane(hn::SumOfLanes(U(), sum));
  for (; i < count; ++i) total += words[i];
  return total;
}

#else

void DotAnyBits(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x,
                int64_t x_stride, int64_t batch, float* y) {
  for (int64_t b = 0; b < batch; ++b) {
    LutMatmulReference(matrix, begin, end, x + b * x_stride, 1, y + b * matrix.out_features());
  }
}

void DequantizeAnyBits(const LutMatrix& matrix, int64_t begin, int64_t end, float* out) {
  DequantizeLutRowsReference(matrix, begin, end, out);
}

uint32_t Sum(const uint32_t* words, int64_t count) {
  uint32_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += words[i];
  return total;
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {
namespace {

HWY_EXPORT(DotAnyBits);
HWY_EXPORT(DequantizeAnyBits);
HWY_EXPORT(Sum);

// Tiles per thread: enough to balance, few because each begins with memory that nobody prefetched.
constexpr int64_t kTilesPerThread = 2;
constexpr int64_t kLeastTileRows = 16;
// Weights below which waking the pool costs more than it saves.
constexpr int64_t kSmall = 1 << 16;

template <typename Body>
void ForTiles(int64_t begin, int64_t end, int64_t work, ThreadPool* pool, const Body& body) {
  if (pool == nullptr || work < kSmall) return body(begin, end);
  // Any cut gives the same result: a row's sums are its own.
  const int64_t rows =
      std::max(kLeastTileRows, (end - begin) / (pool->threads() * kTilesPerThread));
  pool->ParallelFor((end - begin + rows - 1) / rows, [&](int64_t tile, int) {
    const int64_t first = begin + tile * rows;
    body(first, std::min(first + rows, end));
  });
}

}  // namespace

void LutMatmul(const LutMatrix& matrix, const float* x, int64_t batch, float* y, ThreadPool* pool) {
  const int64_t in = matrix.in_features();
  // A vector that crosses cache lines costs two loads, and x is loaded once per row of weights.
  constexpr int64_t kLine = 64 / sizeof(float);
  const int64_t stride = (in + kLine - 1) / kLine * kLine;
  const bool copy = reinterpret_cast<uintptr_t>(x) % 64 != 0 || (batch > 1 && stride != in);
  hwy::AlignedFreeUniquePtr<float[]> aligned;
  if (copy) {
    aligned = hwy::AllocateAligned<float>(static_cast<size_t>(batch * stride));
    GRADQ_CHECK(aligned != nullptr);
    for (int64_t b = 0; b < batch; ++b) std::copy_n(x + b * in, in, aligned.get() + b * stride);
  }
  const float* rows = copy ? aligned.get() : x;
  const auto run = HWY_DYNAMIC_DISPATCH(DotAnyBits);
  ForTiles(0, matrix.out_features(), matrix.out_features() * in * batch, pool,
           [&](int64_t begin, int64_t end) { run(matrix, begin, end, rows, stride, batch, y); });
}

void DequantizeLutRows(const LutMatrix& matrix, int64_t begin, int64_t end, float* out,
                       ThreadPool* pool) {
  const auto run = HWY_DYNAMIC_DISPATCH(DequantizeAnyBits);
  ForTiles(begin, end, (end - begin) * matrix.in_features(), pool,
           [&](int64_t first, int64_t last) {
             run(matrix, first, last, out + (first - begin) * matrix.in_features());
           });
}

uint32_t SumWords(const uint32_t* words, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(Sum)(words, count);
}

}  // namespace gradq::kernels
#endif
