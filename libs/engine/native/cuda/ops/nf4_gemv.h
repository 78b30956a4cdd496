// nf4_gemv.h: products of few rows with an NF4 weight, read once at memory bandwidth.   y[b] = x[b]·wᵀ + bias (+ low[b]·Bᵀ)
//   For generation: 1 ≤ rows ≤ 32. Weights are rounded to bf16 as nf4_dequantize gives them; sums are fp32, in a fixed order that does not depend on
//   how many rows there are.
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/matrix.h"

namespace engine::cuda {

inline constexpr std::int64_t kGemvRows = 32;

// LoRA's term: low [rows, r] = scale · x·Aᵀ already scaled and rounded; b [N, r].
struct GemvLowRank {
  View<const bf16> low, b;
};

// x [rows, K], y [rows, N], weight [N, K] of dtype nf4 in device memory, K a multiple of 64; bias [N] or null.
void nf4_gemv(View<const bf16> x, const Matrix& weight, const bf16* bias, View<bf16> y, cudaStream_t stream, const GemvLowRank* low_rank = nullptr);

}  // namespace engine::cuda
