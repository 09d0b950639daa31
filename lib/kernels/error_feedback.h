#pragma once

// The triangular factor that error-feedback rounding (coordinate_descent.h) multiplies with. Called
// by lib/solvers.

#include <cstdint>
#include <span>
#include <vector>

namespace gradq {
class ThreadPool;
}

namespace gradq::kernels {

// H + load·I = U D Uᵀ with unit upper triangular U, rows and columns taken in `order`: fp32
// row-major [columns, columns] by position. Factored in fp64 in a fixed order of sums. False when a
// pivot is not positive; `factor` is then undefined.
bool FeedbackFactor(const float* h, int64_t columns, double load, std::span<const int32_t> order,
                    ThreadPool* pool, std::vector<float>* factor);

// [(H + load·I)⁻¹]_jj, fp64 in a fixed order of sums: how much of column j's error the others can't
// make up for is 1 / that. False when a pivot is not positive; `diagonal` is then undefined.
bool InverseDiagonal(const float* h, int64_t columns, double load, ThreadPool* pool,
                     std::vector<double>* diagonal);

}  // namespace gradq::kernels
