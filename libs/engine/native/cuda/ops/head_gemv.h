// head_gemv.h: logits of few rows, the bf16 head read once at memory bandwidth.   logits[b] = cap(norm(x[b])·headᵀ)     cap(z) = c · tanh(z / c)
//   Sums are fp32 in an order that does not depend on how many rows there are. Asynchronous, safe in a captured graph.
#pragma once

#include "cuda/ops/rmsnorm.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

inline constexpr std::int64_t kHeadRows = 64;

// x [rows, K], head [V, K], logits [rows, V]; 1 to kHeadRows rows, K a multiple of 64. `norm` as in nf4_gemv.h: weight null or at most kGemvNormRows rows.
// softcap 0: none.
void head_gemv(View<const bf16> x, const RmsNorm& norm, View<const bf16> head, float softcap, View<float> logits, cudaStream_t stream);

}  // namespace engine::cuda
