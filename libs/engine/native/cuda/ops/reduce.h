// reduce.h: sums over many values in a fixed order, without atomics.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

// *out = Σ x², in fp64. Not finite when any x is not. `workspace` holds sum_of_squares_workspace() bytes. x 16-byte aligned.
void sum_of_squares(const float* x, std::int64_t n, double* out, void* workspace, cudaStream_t stream);
std::int64_t sum_of_squares_workspace();

// *scale = min(1, max_norm / (√*sum + 1e-6)): what gradients are multiplied by (max_norm ≤ 0: always 1); NaN when *sum is not finite, which skips the step.
// *norm = √*sum when not null.
void clip_scale(const double* sum, float max_norm, float* scale, float* norm, cudaStream_t stream);

// db[c] += Σ_r dy[r, c]: the gradient of a bias. `workspace` holds bias_gradient_workspace(rows, cols) bytes.
void bias_gradient(View<const bf16> dy, float* db, void* workspace, cudaStream_t stream);
std::int64_t bias_gradient_workspace(std::int64_t rows, std::int64_t cols);

// out[r] = column of the largest logit of row r; the first of equals. NaNs lose; a row of nothing else gives 0.
void argmax_rows(View<const bf16> x, std::int32_t* out, cudaStream_t stream);

}  // namespace engine::cuda
