#pragma once

// Codes of a lane -> A fragments of mma.m16n8k16, for every encoding and width with kernels
// (tile_layout.h). LUT entries are looked up with prmt in byte planes that stay in registers, so
// that the fp16 value is exact; affine weights are (code - zero point) exactly and then times the
// scale, rounded to fp16 once.

#include <cstdint>

#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

// The four mma of a lane's window: a[s] are the registers of A in PTX order (row g, row g + 8, row
// g at k + 8, row g + 8 at k + 8).
struct WindowFragments {
  uint32_t a[4][4];
};

// Selectors 2·half and 2·half + 1 of a lane's window, eight nibbles each; junk above the code's
// bits at 4 bits only (there is none). Not for 8 bits.
template <int kBits>
GRADQ_DEVICE void Selectors(const uint32_t* window, int half, uint32_t (&selector)[2]) {
  if (kBits == 2) {
    selector[0] = window[half] & 0x33333333;
    selector[1] = window[half] >> 2 & 0x33333333;
  } else if (kBits == 3) {
    selector[0] = window[2 * half] & 0x77777777;
    selector[1] = half == 0 ? window[1] & 0x77777777
                            : (window[0] >> 3 & 0x11111111) | (window[1] >> 2 & 0x22222222) |
                                  (window[2] >> 1 & 0x44444444);
  } else {
    selector[0] = window[2 * half];
    selector[1] = window[2 * half + 1];
  }
}

// What a lane knows of one row tile beside its codes, and how it makes weights with it. `Numbers`
// are what a window needs beyond that; a kernel may fetch them long before it decodes.
template <class S, TileEncoding kEncoding, int kBits>
class TileDecoder;

template <class S, int kBits>
class TileDecoder<S, TileEncoding::kLut, kBits> {
 public:
  static constexpr int kPlaneWords = (1 << kBits) / 4;
  struct Numbers {};

  // Reads the tables of rows g and g + 8 of `tile`.
  GRADQ_DEVICE void Load(const S&, const TileView& view, int64_t tile, int lane) {
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t* from =
          view.tables + (tile * kMmaRows + lane / 4 + 8 * half) * (2 * kPlaneWords);
      GRADQ_UNROLL
      for (int i = 0; i < kPlaneWords; ++i) {
        low_[half][i] = from[i];
        high_[half][i] = from[kPlaneWords + i];
      }
    }
  }

  GRADQ_DEVICE Numbers Fetch(const TileView&, int64_t /*tile*/, int /*lane*/,
                             int64_t /*column*/) const {
    return {};
  }
  // `window` holds the lane's kBits words; `column` is of its first code.
  GRADQ_DEVICE void Decode(const S& s, const TileView& view, int64_t tile, int lane, int64_t column,
                           const uint32_t* window, WindowFragments* out) const {
    Decode(s, Fetch(view, tile, lane, column), window, out);
  }
  GRADQ_DEVICE void Decode(const S& s, const Numbers&, const uint32_t* window,
                           WindowFragments* out) const {
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t selector[2];
      Selectors<kBits>(window, half, selector);
      uint32_t pick[2] = {};
      if constexpr (kBits == 4) {
        // A nibble's top bit means something else to prmt: both halves of a plane are looked up
        // with the lower three bits, and the top bit picks between the two.
        GRADQ_UNROLL
        for (int q = 0; q < 2; ++q) {
          pick[q] = (selector[q] >> 1 & 0x44444444) | 0x32103210;
          selector[q] &= 0x77777777;
        }
      }
      GRADQ_UNROLL
      for (int step = 0; step < 4; ++step) {
        // prmt reads the low four nibbles.
        const int shift = step % 2 * 16;
        const uint32_t low =
            Look(s, low_[half], selector[step / 2] >> shift, pick[step / 2] >> shift);
        const uint32_t high =
            Look(s, high_[half], selector[step / 2] >> shift, pick[step / 2] >> shift);
        out->a[step][half] = s.Prmt(low, high, 0x5140);
        out->a[step][2 + half] = s.Prmt(low, high, 0x7362);
      }
    }
  }

 private:
  // Four bytes of a plane.
  static GRADQ_DEVICE uint32_t Look(const S& s, const uint32_t (&plane)[kPlaneWords],
                                    uint32_t nibbles, uint32_t pick) {
    if constexpr (kBits == 2) {
      return s.Prmt(plane[0], plane[0], nibbles);
    } else if constexpr (kBits == 3) {
      return s.Prmt(plane[0], plane[1], nibbles);
    } else {
      return s.Prmt(s.Prmt(plane[0], plane[1], nibbles), s.Prmt(plane[2], plane[3], nibbles), pick);
    }
  }

  uint32_t low_[2][kPlaneWords];
  uint32_t high_[2][kPlaneWords];
};

template <class S, int kBits>
class TileDecoder<S, TileEncoding::kAffine, kBits> {
 public:
  GRADQ_DEVICE void Load(const S&, const TileView&, int64_t, int) {}

  // Words of `scales` of rows g and g + 8.
  struct Numbers {
    uint32_t both[2];
  };

  GRADQ_DEVICE Numbers Fetch(const TileView& view, int64_t tile, int lane, int64_t column) const {
    // In units of 16 columns, in 32 bits: a 64-bit division takes as long as a window's decoding.
    // Columns of the padding may lie beyond the last group; they meet x = 0.
    const uint32_t unit = static_cast<uint32_t>(column) / kLaneColumns;
    uint32_t group = unit / (static_cast<uint32_t>(view.group_size) / kLaneColumns);
    const uint32_t last = static_cast<uint32_t>(view.groups) - 1;
    if (group > last) group = last;
    const uint32_t* scales = view.scales + (tile * view.groups + group) * kMmaRows + lane / 4;
    return {{scales[0], scales[8]}};
  }

  GRADQ_DEVICE void Decode(const S& s, const TileView& view, int64_t tile, int lane, int64_t column,
                           const uint32_t* window, WindowFragments* out) const {
    Decode(s, Fetch(view, tile, lane, column), window, out);
  }
  GRADQ_DEVICE void Decode(const S& s, const Numbers& numbers, const uint32_t* window,
                           WindowFragments* out) const {
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t both = numbers.both[half];
      const uint32_t scale = s.Prmt(both, both, 0x1010);
      // 1024 + code is exact in fp16, and so is its difference to 1024 + zero point.
      const uint32_t zero = s.Prmt(both, both, 0x3232);
      uint32_t selector[2] = {};
      if constexpr (kBits != 8) Selectors<kBits>(window, half, selector);
      GRADQ_UNROLL
      for (int step = 0; step < 4; ++step) {
        GRADQ_UNROLL
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t codes;
          if constexpr (kBits == 8) {
            codes = s.Prmt(window[4 * half + step], 0x64646464, pair == 0 ? 0x4140 : 0x4342);
          } else {
            constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x10001u;
            codes = (selector[step / 2] >> (8 * (step % 2) + 4 * pair) & kMask) | 0x64006400;
          }
          out->a[step][2 * pair + half] = s.MulHalf2(s.SubHalf2(codes, zero), scale);
        }
      }
    }
  }
};

}  // namespace gradq::kernels
