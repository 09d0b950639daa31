#include "lib/kernels/affine_matmul.h"

#include "lib/base/status_macros.h"
#include "lib/kernels/float16.h"

namespace gradq::kernels {
namespace {

constexpr int64_t kPadWords = 16;

float Weight(const AffineMatrix& matrix, int64_t r, int64_t column) {
  const int64_t bit = column * matrix.bits();
  const uint32_t* word = matrix.row(r) + bit / 32;
  // The pad makes the second word readable at the end of the last row.
  const uint64_t pair = word[0] | static_cast<uint64_t>(word[1]) << 32;
  const auto code = static_cast<int>(pair >> (bit % 32) & ((1u << matrix.bits()) - 1));
  const int64_t group = column / matrix.group_size();
  return static_cast<float>(code - matrix.zero_points(r)[group]) *
         Float16ToFloat(matrix.scales(r)[group]);
}

}  // namespace

AffineMatrix::AffineMatrix(std::span<const uint32_t> packed, std::span<const uint16_t> scale,
                           std::span<const uint8_t> zero_point, int64_t out_features,
                           int64_t in_features, int bits, int64_t group_size)
    : out_features_(out_features),
      in_features_(in_features),
      stride_((in_features * bits + 31) / 32),
      group_size_(group_size),
      groups_((in_features + group_size - 1) / group_size),
      bits_(bits),
      packed_(packed.begin(), packed.end()),
      scale_(scale.begin(), scale.end()),
      zero_point_(zero_point.begin(), zero_point.end()) {
  GRADQ_CHECK(bits >= 1 && bits <= 8 && out_features >= 1 && in_features >= 1 && group_size >= 1);
  GRADQ_CHECK(static_cast<int64_t>(packed.size()) == out_features * stride_);
  GRADQ_CHECK(static_cast<int64_t>(scale.size()) == out_features * groups_);
  GRADQ_CHECK(zero_point.size() == scale.size());
  packed_.resize(packed_.size() + kPadWords, 0);
}

int64_t AffineMatrix::bytes() const {
  return static_cast<int64_t>(packed_.size() * sizeof(uint32_t) + scale_.size() * sizeof(uint16_t) +
                              zero_point_.size()) +
         sparse_.bytes();
}

void AffineMatmulReference(const AffineMatrix& matrix, int64_t begin, int64_t end, const float* x,
                           int64_t batch, float* y) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0;
      for (int64_t c = 0; c < matrix.in_features(); ++c) {
        sum += double{Weight(matrix, r, c)} * x[b * matrix.in_features() + c];
      }
      matrix.sparse().ForRow(r, [&](int64_t column, float value) {
        sum += double{value} * x[b * matrix.in_features() + column];
      });
      y[b * matrix.out_features() + r] = static_cast<float>(sum);
    }
  }
}

void DequantizeAffineRowsReference(const AffineMatrix& matrix, int64_t begin, int64_t end,
                                   float* out) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < matrix.in_features(); ++c) *out++ = Weight(matrix, r, c);
    matrix.sparse().AddRow(r, out - matrix.in_features());
  }
}

}  // namespace gradq::kernels
