// rmsnorm.h: y = x · rstd · (w + offset),  rstd = 1 / √(mean(x²) + eps), over each row.   (ops/rmsnorm.h; norms of heads are in qkv_post.h)
//   Statistics are fp32. x, y, dy, dx bf16; weight fp32 [cols]. cols is a multiple of 8, at most 16384. Asynchronous on `stream`.
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

struct RmsNorm {
  const float* weight;  // [cols]
  float eps;
  float offset = 0;
};

// With `delta` (data not null): x ← bf16(x + delta) first, and the norm is of that. rstd [rows] is written when not null. y may be x or delta when
// nothing reads them later; y.data null writes x and rstd alone.
void rmsnorm_forward(const RmsNorm& norm, View<bf16> x, View<const bf16> delta, View<bf16> y, float* rstd, cudaStream_t stream);

// dx (+)= rstd · (dy·(w + offset) - x·rstd² · mean(dy·(w + offset)·x)).   dx may be dy. Added in fp32, rounded once.
void rmsnorm_backward(const RmsNorm& norm, View<const bf16> x, const float* rstd, View<const bf16> dy, View<bf16> dx, bool accumulate, cudaStream_t stream);

// dweight[cols] += Σ over rows of dy · x · rstd, in a fixed order. `workspace` holds rmsnorm_weight_workspace(rows, cols) bytes.
void rmsnorm_backward_weight(View<const bf16> x, const float* rstd, View<const bf16> dy, float* dweight, void* workspace, cudaStream_t stream);
std::int64_t rmsnorm_weight_workspace(std::int64_t rows, std::int64_t cols);

}  // namespace engine::cuda
