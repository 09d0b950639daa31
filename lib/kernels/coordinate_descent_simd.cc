#include <algorithm>
#include <cstdint>

#include "lib/kernels/coordinate_descent.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/coordinate_descent_simd.cc"
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
constexpr int64_t kPrefetch = 2048;  // floats ahead in the panel

struct Step {
  Vector v[kVectors];
};

// acc[c] += Σ_{k in [from, to)} panel[k][c] · error[row k], k ascending. kOrdered reads row
// order[k] of error.
template <bool kOrdered>
HWY_INLINE void Product(const float* HWY_RESTRICT panel, int64_t from, int64_t to,
                        const float* error, const int32_t* order, Step (&acc)[kPanel]) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  Vector a[kPanel][kVectors];
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) a[c][v] = acc[c].v[v];
  }
  for (int64_t k = from; k < to; ++k) {
    const float* row = error + (kOrdered ? order[k] : k) * kTileRows;
    Vector e[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) e[v] = hn::Load(d, row + v * lanes);
    const float* h = panel + k * kPanel;
    // Beyond the last-level cache the hardware's prefetcher alone reaches half the rate.
    __builtin_prefetch(h + kPrefetch, 0, 2);
#pragma GCC unroll 12
    for (int c = 0; c < kPanel; ++c) {
      const Vector factor = hn::Set(d, h[c]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) a[c][v] = hn::MulAdd(factor, e[v], a[c][v]);
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[c].v[v] = a[c][v];
  }
}

// Codeword nearest to the target: kLevels compares against midpoints, or a binary search with
// gathers (kLevels = 0).
template <int kLevels>
struct Nearest {
  const float* table;
  const float* midpoint;
  int levels;

  HWY_INLINE Vector operator()(Vector target, int64_t row) const {
    const Lane d;
    if constexpr (kLevels > 0) {
      Vector nearest = hn::Load(d, table + row);
#pragma GCC unroll 16
      for (int q = 1; q < kLevels; ++q) {
        nearest = hn::IfThenElse(hn::Gt(target, hn::Load(d, midpoint + (q - 1) * kTileRows + row)),
                                 hn::Load(d, table + q * kTileRows + row), nearest);
      }
      return nearest;
    } else {
      return hn::GatherIndex(d, table + row, Position(target, row));
    }
  }

  // Of the codeword in `table + row`, in floats.
  HWY_INLINE hn::Vec<LaneInt> Position(Vector target, int64_t row) const {
    const Lane d;
    const LaneInt di;
    hn::Vec<LaneInt> position = hn::Iota(di, 0);
    for (int step = levels / 2; step > 0; step /= 2) {
      const auto probe = hn::Add(position, hn::Set(di, (step - 1) * kTileRows));
      const auto above = hn::Gt(target, hn::GatherIndex(d, midpoint + row, probe));
      position = hn::Add(
          position, hn::IfThenElseZero(hn::RebindMask(di, above), hn::Set(di, step * kTileRows)));
    }
    return position;
  }
};

// Calls body(Nearest<levels>) with the specialised search for up to 16 levels.
template <typename Body>
HWY_INLINE void WithLevels(const RowTile& tile, Body&& body) {
  switch (tile.levels) {
    case 2:
      return body(Nearest<2>{tile.table, tile.midpoint, 2});
    case 4:
      return body(Nearest<4>{tile.table, tile.midpoint, 4});
    case 8:
      return body(Nearest<8>{tile.table, tile.midpoint, 8});
    case 16:
      return body(Nearest<16>{tile.table, tile.midpoint, 16});
    default:
      return body(Nearest<0>{tile.table, tile.midpoint, tile.levels});
  }
}

// The error of weights kept apart is 0.
HWY_INLINE Vector OfActive(const RowTile& tile, int64_t at, Vector error) {
  const Lane d;
  if (tile.active == nullptr) return error;
  return hn::IfThenElseZero(hn::Ne(hn::Load(d, tile.active + at), hn::Zero(d)), error);
}

template <typename Search>
HWY_INLINE bool DescendPanel(const float* HWY_RESTRICT panel, int64_t columns, int64_t first,
                             int width, const float* inverse_diagonal, const RowTile& tile,
                             int64_t row, const Search& nearest, float* decrease) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  Step product[kPanel];
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) product[c].v[v] = hn::Zero(d);
  }
  Product<false>(panel, 0, columns, tile.error + row, nullptr, product);
  Vector fell[kVectors];
  auto changed = hn::FirstN(d, 0);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) fell[v] = hn::Zero(d);
#pragma GCC unroll 12
  for (int c = 0; c < kPanel; ++c) {
    if (c >= width) break;
    const float* block_row = panel + (first + c) * kPanel;
    const int64_t at = (first + c) * kTileRows + row;
    const Vector inverse = hn::Set(d, inverse_diagonal[first + c]);
    const Vector diagonal = hn::Set(d, block_row[c]);
    Vector delta[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector weight = hn::Load(d, tile.weight + at + v * lanes);
      const Vector error = hn::Load(d, tile.error + at + v * lanes);
      const Vector r = product[c].v[v];
      const Vector target = hn::Add(weight, hn::NegMulAdd(r, inverse, error));
      const Vector moved =
          OfActive(tile, at + v * lanes, hn::Sub(nearest(target, row + v * lanes), weight));
      delta[v] = hn::Sub(moved, error);
      hn::Store(moved, d, tile.error + at + v * lanes);
      changed = hn::Or(changed, hn::Ne(delta[v], hn::Zero(d)));
      fell[v] = hn::NegMulAdd(delta[v], hn::MulAdd(delta[v], diagonal, hn::Add(r, r)), fell[v]);
    }
#pragma GCC unroll 12
    for (int later = c + 1; later < kPanel; ++later) {
      const Vector factor = hn::Set(d, block_row[later]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        product[later].v[v] = hn::MulAdd(delta[v], factor, product[later].v[v]);
      }
    }
  }
  if (decrease != nullptr) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* out = decrease + row + v * lanes;
      hn::StoreU(hn::Add(hn::LoadU(d, out), fell[v]), d, out);
    }
  }
  return !hn::AllFalse(d, changed);
}

bool CycleTarget(const PanelMatrix& h, const float* inverse_diagonal, const RowTile& tile,
                 float* decrease) {
  const int64_t rows = kVectors * hn::Lanes(Lane());
  bool changed = false;
  if (decrease != nullptr) std::fill_n(decrease, kTileRows, 0.0f);
  WithLevels(tile, [&](const auto& nearest) HWY_ATTR {
    for (int64_t panel = 0; panel < h.panels(); ++panel) {
      const int64_t first = panel * kPanel;
      const int width = static_cast<int>(std::min<int64_t>(kPanel, h.columns() - first));
      for (int64_t row = 0; row < kTileRows; row += rows) {
        changed |= DescendPanel(h.panel(panel), h.columns(), first, width, inverse_diagonal, tile,
                                row, nearest, decrease);
      }
    }
  });
  return changed;
}

void FeedbackTarget(const PanelMatrix& feedback, const int32_t* order, const RowTile& tile) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  WithLevels(tile, [&](const auto& nearest) HWY_ATTR {
    for (int64_t index = 0; index < feedback.panels(); ++index) {
      const float* panel = feedback.panel(index);
      const int64_t first = index * kPanel;
      const int width = static_cast<int>(std::min<int64_t>(kPanel, feedback.columns() - first));
      for (int64_t row = 0; row < kTileRows; row += kVectors * lanes) {
        Step sum[kPanel];
#pragma GCC unroll 12
        for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sum[c].v[v] = hn::Zero(d);
        }
        Product<true>(panel, 0, first, tile.error + row, order, sum);
#pragma GCC unroll 12
        for (int c = 0; c < kPanel; ++c) {
          if (c >= width) break;
          const float* block_row = panel + (first + c) * kPanel;
          const int64_t at = static_cast<int64_t>(order[first + c]) * kTileRows + row;
          Vector error[kVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const Vector weight = hn::Load(d, tile.weight + at + v * lanes);
            const Vector target = hn::Sub(weight, sum[c].v[v]);
            error[v] =
                OfActive(tile, at + v * lanes, hn::Sub(nearest(target, row + v * lanes), weight));
            hn::Store(error[v], d, tile.error + at + v * lanes);
          }
#pragma GCC unroll 12
          for (int later = c + 1; later < kPanel; ++later) {
            const Vector factor = hn::Set(d, block_row[later]);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              sum[later].v[v] = hn::MulAdd(factor, error[v], sum[later].v[v]);
            }
          }
        }
      }
    }
  });
}

void FormsTarget(const PanelMatrix& h, const float* error, double* forms) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  std::fill_n(forms, kTileRows, 0.0);
  for (int64_t index = 0; index < h.panels(); ++index) {
    const int64_t first = index * kPanel;
    const int width = static_cast<int>(std::min<int64_t>(kPanel, h.columns() - first));
    for (int64_t row = 0; row < kTileRows; row += kVectors * lanes) {
      Step product[kPanel];
#pragma GCC unroll 12
      for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) product[c].v[v] = hn::Zero(d);
      }
      Product<false>(h.panel(index), 0, h.columns(), error + row, nullptr, product);
      HWY_ALIGN float products[kPanel][kTileRows];
#pragma GCC unroll 12
      for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) hn::Store(product[c].v[v], d, products[c] + v * lanes);
      }
      for (int c = 0; c < width; ++c) {
        const float* errors = error + (first + c) * kTileRows + row;
        for (int64_t r = 0; r < kVectors * lanes; ++r) {
          forms[row + r] += static_cast<double>(products[c][r]) * static_cast<double>(errors[r]);
        }
      }
    }
  }
}

void ExactFormsTarget(const PanelMatrix& h, const float* error, double* forms) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const int64_t lanes = hn::Lanes(d);
  std::fill_n(forms, kTileRows, 0.0);
  for (int64_t index = 0; index < h.panels(); ++index) {
    const float* panel = h.panel(index);
    const int64_t first = index * kPanel;
    const int width = static_cast<int>(std::min<int64_t>(kPanel, h.columns() - first));
    for (int64_t row = 0; row < kTileRows; row += lanes) {
      hn::Vec<decltype(d)> sum[kPanel];
#pragma GCC unroll 12
      for (int c = 0; c < kPanel; ++c) sum[c] = hn::Zero(d);
      for (int64_t k = 0; k < h.columns(); ++k) {
        const auto e = hn::PromoteTo(d, hn::Load(narrow, error + k * kTileRows + row));
        const float* entries = panel + k * kPanel;
#pragma GCC unroll 12
        for (int c = 0; c < kPanel; ++c) {
          sum[c] = hn::MulAdd(hn::Set(d, static_cast<double>(entries[c])), e, sum[c]);
        }
      }
      HWY_ALIGN double sums[kPanel][8];
#pragma GCC unroll 12
      for (int c = 0; c < kPanel; ++c) hn::Store(sum[c], d, sums[c]);
      for (int c = 0; c < width; ++c) {
        const float* errors = error + (first + c) * kTileRows + row;
        for (int64_t r = 0; r < lanes; ++r)
          forms[row + r] += sums[c][r] * static_cast<double>(errors[r]);
      }
    }
  }
}

void RoundTarget(int64_t columns, const RowTile& tile, const float* target, uint8_t* codes) {
  const Lane d;
  const LaneInt di;
  const int64_t lanes = hn::Lanes(d);
  const Nearest<0> nearest{tile.table, tile.midpoint, tile.levels};
  HWY_ALIGN int32_t positions[kTileRows];
  for (int64_t j = 0; j < columns; ++j) {
    const float* wanted = target == nullptr ? tile.weight : target;
    for (int64_t row = 0; row < kTileRows; row += lanes) {
      const int64_t at = j * kTileRows + row;
      const auto position = nearest.Position(hn::Load(d, wanted + at), row);
      const Vector codeword = hn::GatherIndex(d, tile.table + row, position);
      hn::Store(OfActive(tile, at, hn::Sub(codeword, hn::Load(d, tile.weight + at))), d,
                tile.error + at);
      hn::Store(hn::ShiftRight<5>(position), di, positions + row);
    }
    if (codes == nullptr) continue;
    for (int row = 0; row < kTileRows; ++row)
      codes[j * kTileRows + row] = static_cast<uint8_t>(positions[row]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(CycleTarget);
HWY_EXPORT(FeedbackTarget);
HWY_EXPORT(FormsTarget);
HWY_EXPORT(ExactFormsTarget);
HWY_EXPORT(RoundTarget);

bool CoordinateDescentCycle(const PanelMatrix& h, const float* inverse_diagonal,
                            const RowTile& tile, float* decrease) {
  return HWY_DYNAMIC_DISPATCH(CycleTarget)(h, inverse_diagonal, tile, decrease);
}

void ErrorFeedbackRounding(const PanelMatrix& feedback, const int32_t* order, const RowTile& tile) {
  HWY_DYNAMIC_DISPATCH(FeedbackTarget)(feedback, order, tile);
}

void QuadraticForms(const PanelMatrix& h, const float* error, double* forms) {
  HWY_DYNAMIC_DISPATCH(FormsTarget)(h, error, forms);
}

void ExactQuadraticForms(const PanelMatrix& h, const float* error, double* forms) {
  HWY_DYNAMIC_DISPATCH(ExactFormsTarget)(h, error, forms);
}

void RoundToNearest(int64_t columns, const RowTile& tile, const float* target, uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(RoundTarget)(columns, tile, target, codes);
}

}  // namespace gradq::kernels
#endif
