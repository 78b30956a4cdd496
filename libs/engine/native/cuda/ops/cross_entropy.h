// cross_entropy.h: the loss of a chunk of logit rows, turned into their gradient in place (ops/cross_entropy.h).
//   z = cap(logits[r])      loss[r] = log Σ exp(z) - z[target[r]]      logits[r] ← bf16(weight[r] · (softmax(z) - onehot(target[r])) · cap')
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/cross_entropy.h"

namespace engine::cuda {

// logits bf16 [R, V], rows 16-byte aligned; targets [R], each below V (the caller checks); weights [R]: a weight of 0 gives a gradient of zeros. losses
// [R] receives the unweighted losses. Everything in device memory; asynchronous on `stream`.
void cross_entropy(View<bf16> logits, const std::uint32_t* targets, const float* weights, float softcap, LogitGradient gradient, float* losses,
                   cudaStream_t stream);

// *sum += Σ weights[r] · losses[r], in fp64, in a fixed order; *count += number of rows whose weight is not 0 (skipped when null).
void add_losses(const float* losses, const float* weights, std::int64_t rows, double* sum, std::int64_t* count, cudaStream_t stream);

}  // namespace engine::cuda
