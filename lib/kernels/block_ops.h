#pragma once

// The memory-bound ops of a decoder block and of the loss, forward and backward, each one pass over
// its rows. A row is computed alone, with lanes and tails fixed by its length, so callers may split
// rows over threads as they like without a bit changing (ATen's SiLU is not so: the tail of each
// thread's range takes another code path). Pointers must not overlap unless said otherwise.

#include <cstdint>

namespace gradq::kernels {

// out = x · weight / sqrt(mean x² + eps), row by row; scale[row] = 1 / sqrt(mean x² + eps). x, out
// [rows, columns]; weight [columns].
void RmsNormRows(const float* x, const float* weight, float eps, int64_t rows, int64_t columns,
                 float* out, float* scale);
// dx of the same from dL/dout and the saved scale.
void RmsNormBackwardRows(const float* x, const float* weight, const float* scale, const float* dout,
                         int64_t rows, int64_t columns, float* dx);

// Rotates pairs (i, i + head_dim / 2) of every head by the angle of the token: out = x cos +
// swap(x) sin, with `inverse` by minus the angle (which is the backward of the rotation). x, out
// [tokens, heads, head_dim], where token t has position t % positions; cos, sin [positions,
// head_dim].
void RotateRows(const float* x, const float* cos, const float* sin, int64_t begin, int64_t end,
                int64_t positions, int64_t heads, int64_t head_dim, bool inverse, float* out);

// out[i] = silu(gate[i]) · up[i].
void SwigluRange(const float* gate, const float* up, int64_t count, float* out);
// dgate and dup may be gate and up.
void SwigluBackwardRange(const float* gate, const float* up, const float* dout, int64_t count,
                         float* dgate, float* dup);

// Of logits [rows, columns] and target ids [rows]: losses[row] = -ln softmax(logits)[target], and
// in place of the logits (softmax - onehot) · weight. A row with target < 0 gets zeros and loss 0.
void CrossEntropyRows(float* logits, const int64_t* targets, int64_t rows, int64_t columns,
                      float weight, float* losses);

}  // namespace gradq::kernels
