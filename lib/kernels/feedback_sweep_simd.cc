#include <algorithm>
#include <cstdint>

#include "lib/kernels/feedback_sweep.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/feedback_sweep_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that a tile is a whole number of steps.
using Lane = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Lane>;
using LaneInt = hn::RebindToSigned<Lane>;

// Rows of one step: two vectors where 32 registers hold 12 × 2 accumulators, else one.
#if HWY_TARGET <= HWY_AVX3
constexpr int kVectors = 2;
#else
constexpr int kVectors = 1;
#endif
constexpr int kPanel = kPanelColumns;

HWY_INLINE void StoreCodes(hn::Vec<LaneInt> codes, uint8_t* out) {
  const hn::Rebind<uint8_t, LaneInt> bytes;
  hn::StoreU(hn::DemoteTo(bytes, codes), bytes, out);
}

struct ToAffine {
  AffineGrids grids;
  uint8_t* codes;

  HWY_INLINE Vector operator()(int64_t column, int64_t row, Vector target) const {
    const Lane d;
    const LaneInt di;
    const int64_t at = static_cast<int64_t>(grids.grid[column]) * kTileRows + row;
    const Vector scale = hn::Load(d, grids.scale + at), zero = hn::Load(d, grids.zero + at);
    const Vector highest = hn::Set(d, static_cast<float>(grids.highest));
    const Vector code =
        hn::Min(hn::Max(hn::Add(hn::Round(hn::Div(target, scale)), zero), hn::Zero(d)), highest);
    StoreCodes(hn::ConvertTo(di, code), codes + column * kTileRows + row);
    return hn::Mul(hn::Sub(code, zero), scale);
  }
};

struct ToCodebook {
  RowCodebooks codebooks;
  uint8_t* codes;

  HWY_INLINE Vector operator()(int64_t column, int64_t row, Vector target) const {
    const Lane d;
    const LaneInt di;
    // Binary search; positions count floats, so that they index the table.
    const auto first = hn::Iota(di, 0);
    hn::Vec<LaneInt> position = first;
    for (int step = codebooks.levels / 2; step > 0; step /= 2) {
      const auto probe = hn::Add(position, hn::Set(di, (step - 1) * kTileRows));
      const auto above = hn::Gt(target, hn::GatherIndex(d, codebooks.midpoint + row, probe));
      position = hn::Add(
          position, hn::IfThenElseZero(hn::RebindMask(di, above), hn::Set(di, step * kTileRows)));
    }
    StoreCodes(hn::ShiftRight<5>(position), codes + column * kTileRows + row);
    return hn::GatherIndex(d, codebooks.table + row, position);
  }
};

struct Unrounded {
  HWY_INLINE Vector operator()(int64_t, int64_t, Vector target) const { return target; }
};

// Positions [from, to) of one panel, rows row .. row + kVectors · lanes - 1.
template <typename Round>
HWY_INLINE void SweepPanel(const float* HWY_RESTRICT panel, const int32_t* order, int64_t first,
                           int64_t from, int64_t to, const SweepTile& tile, int64_t row,
                           const Round& round) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  Vector sum[kPanel][kVectors];
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[c][v] = hn::Zero(d);
  }
  for (int64_t k = 0; k < first; ++k) {
    const float* error = tile.error + static_cast<int64_t>(order[k]) * kTileRows + row;
    Vector e[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) e[v] = hn::Load(d, error + v * lanes);
    const float* u = panel + k * kPanel;
#pragma GCC unroll 12
    for (int c = 0; c < kPanel; ++c) {
      const Vector factor = hn::Set(d, u[c]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[c][v] = hn::MulAdd(factor, e[v], sum[c][v]);
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
    if (first + c >= to) break;
    const float* u = panel + (first + c) * kPanel;
    const int64_t column = order[first + c], at = column * kTileRows + row;
    Vector error[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if (first + c < from) {
        error[v] = hn::Load(d, tile.error + at + v * lanes);
        continue;
      }
      const Vector weight = hn::Load(d, tile.weight + at + v * lanes);
      error[v] = hn::Sub(round(column, row + v * lanes, hn::Sub(weight, sum[c][v])), weight);
      if (tile.active != nullptr) {
        const Vector active = hn::Load(d, tile.active + at + v * lanes);
        error[v] = hn::IfThenElseZero(hn::Ne(active, hn::Zero(d)), error[v]);
      }
      hn::Store(error[v], d, tile.error + at + v * lanes);
    }
#pragma GCC unroll 12
    for (int later = c + 1; later < kPanel; ++later) {
      const Vector factor = hn::Set(d, u[later]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[later][v] = hn::MulAdd(factor, error[v], sum[later][v]);
      }
    }
  }
}

template <typename Round>
HWY_INLINE void Sweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                      const SweepTile& tile, const Round& round) {
  const int64_t rows = kVectors * static_cast<int64_t>(hn::Lanes(Lane()));
  for (int64_t index = from / kPanel; index * kPanel < to; ++index) {
    for (int64_t row = 0; row < kTileRows; row += rows) {
      SweepPanel(feedback.panel(index), order, index * kPanel, from, to, tile, row, round);
    }
  }
}

void AffineTarget(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                  const AffineGrids& grids, const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, ToAffine{grids, tile.codes});
}

void CodebookTarget(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                    const RowCodebooks& codebooks, const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, ToCodebook{codebooks, tile.codes});
}

void UnroundedTarget(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                     const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, Unrounded{});
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(AffineTarget);
HWY_EXPORT(CodebookTarget);
HWY_EXPORT(UnroundedTarget);

void AffineSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                 const AffineGrids& grids, const SweepTile& tile) {
  HWY_DYNAMIC_DISPATCH(AffineTarget)(feedback, order, from, to, grids, tile);
}

void CodebookSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                   const RowCodebooks& codebooks, const SweepTile& tile) {
  HWY_DYNAMIC_DISPATCH(CodebookTarget)(feedback, order, from, to, codebooks, tile);
}

void UnroundedSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                    const SweepTile& tile) {
  HWY_DYNAMIC_DISPATCH(UnroundedTarget)(feedback, order, from, to, tile);
}

}  // namespace gradq::kernels
#endif
