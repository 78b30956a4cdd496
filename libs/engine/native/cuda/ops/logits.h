// logits.h: maps over rows of fp32 logits.   Asynchronous, safe in a captured graph.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

// z ← c · tanh(z / c); c = 0 changes nothing.
void softcap_logits(View<float> logits, float softcap, cudaStream_t stream);

// logprobs[r] = logits[r, targets[r]] - log Σ exp(logits[r]); NaN when a logit is NaN or +∞. Rows with only[r] < 0 are left alone (null: none is). Sums are
// fp64 in an order that depends on the number of columns alone.
void log_probs(View<const float> logits, const std::uint32_t* targets, const std::int32_t* only, float* logprobs, cudaStream_t stream);

}  // namespace engine::cuda
