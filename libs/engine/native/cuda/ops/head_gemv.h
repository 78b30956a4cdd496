// head_gemv.h: logits of few rows, the bf16 head read once at memory bandwidth.   logits[b] = cap(x[b]·headᵀ)     cap(z) = c · tanh(z / c)
//   Products are exact, sums fp32 in an order that does not depend on how many rows there are. Asynchronous, safe in a captured graph.
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

inline constexpr std::int64_t kHeadRows = 64;

// x [rows, K], normalized; head [V, K]; logits [rows, V]. 1 to kHeadRows rows, K a multiple of 8. softcap 0: none.
void head_gemv(View<const bf16> x, View<const bf16> head, float softcap, View<float> logits, cudaStream_t stream);

}  // namespace engine::cuda
