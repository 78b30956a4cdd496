// linear.h: products of activations with a stored weight.   T tokens, K inputs, N outputs.
//   Compute::bf16 rounds both operands to bf16 and sums in fp32; NF4 weights become bf16(code * absmax), as bitsandbytes does.
//   Compute::f32 uses the weights as stored (NF4: code * absmax in fp32) and fp32 products.
//   Work is split over outputs, never over the sum, so results do not depend on the thread count.
//   Row independence: with SumOrder::same_for_any_rows, row t of y has the same bits however many rows there are. With SumOrder::fastest it
//   has them for all T > kVectorRows, and others for all T <= kVectorRows, where weights are streamed once, at memory bandwidth, in the order of
//   lane_order.h. One order for both costs products of many rows about 3 % at K of 1,536 and more, and far more below 200.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

inline constexpr std::int64_t kVectorRows = 4;

// A low-rank term of the same result, LoRA's: added while the result is still in cache, which a product of its own would have to
// read and write again. scale · left[T,r] · right, where right is
//   linear: B [N,r], used transposed, and left = x·Aᵀ        linear_backward_input: A [r,K], and left = dy·B
struct LowRank {
  ConstRows left, right;
  float scale = 1.0f;
};

// y[T,N] = x[T,K]·wᵀ + bias (+ low rank)      (accumulate: y += …)      w [N,K]; bias fp32 [N] or null.
// y must not overlap x. Throws invalid when shapes disagree, unsupported for another weight type.
void linear(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate = false, const LowRank* low_rank = nullptr);

// dx[T,K] = dy[T,N]·w (+ low rank)      (accumulate: dx += …)      The gradient of linear with respect to x. dx must not overlap dy.
void linear_backward_input(const Exec& ex, ConstRows dy, const Matrix& w, Rows dx, bool accumulate = false, const LowRank* low_rank = nullptr);

// out = rows first_row … first_row + row_count - 1 of a weight as fp32, dense, not rounded to bf16. For merging and for
// full-parameter training's master copy; decode.h has the form for any run of elements.
void dequantize_rows(const Matrix& w, std::int64_t first_row, std::int64_t row_count, float* out);

}  // namespace engine
