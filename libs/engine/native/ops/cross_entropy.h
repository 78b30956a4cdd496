// cross_entropy.h: the loss of a chunk of logit rows, turned into their gradient in place.
//   z = cap(logits[r]) (cap as in attention.h; softcap 0: none)      loss[r] = log Σ exp(z) - z[target[r]]
//   logits[r] ← weight[r] · (softmax(z) - onehot(target[r])) · cap'      the gradient of Σ weight[r] · loss[r]
//   Rows are independent, so a step may go through any number of chunks and give the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

enum class LogitGradient : std::uint8_t { none, in_place };  // none leaves the logits as they are

// logits [R,V]; targets [R], each below V or invalid is thrown; weights [R] (a weight of 0 ignores the row: its gradient is 0 and its
// loss is still reported). losses [R] receives the unweighted losses (−log p) or is null.
// Returns Σ weight[r] · loss[r], summed in fp64 in row order.
double cross_entropy(const Exec& ex, Rows logits, std::span<const std::uint32_t> targets, std::span<const float> weights, float softcap,
                     LogitGradient gradient, float* losses);

// z ← softcap · tanh(z / softcap), in place: what generation does to its logits. softcap > 0.
void softcap_logits(const Exec& ex, Rows logits, float softcap);

}  // namespace engine
