// sample.h: from rows of logits to tokens.   The definition is infer/sampler.h: temperature → top-k → top-p → min-p → draw, without what edits logits
//   (constraints, biases, penalties) and without lists of alternatives: such rows are sampled on the host.
//   Equal to the CPU's choice, ties included, but for draws that fall within the rounding of a sum of doubles (about 1e-13) of a border.
//   Asynchronous, safe in a captured graph: settings and positions are read when the kernel runs.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

// Of one row; the values check_sampling allows.
struct SampleSettings {
  std::uint64_t seed;
  double temperature;  // 0: the largest logit, the lowest id among equals
  double top_p, min_p;
  std::int64_t top_k;  // 0: all
};

// For each row: tokens[r], and logprobs[r] = logits[r, token] - log Σ exp(logits[r]): of the model's own distribution (NaN when a logit is NaN or +∞).
// positions[r]: where the token will stand in its sequence, which numbers its draw; negative: the row is left alone.
// `workspace` holds sample_workspace(rows, V) bytes.
void sample(View<const float> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace,
            cudaStream_t stream);
void sample(View<const bf16> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace,
            cudaStream_t stream);
std::int64_t sample_workspace(std::int64_t rows, std::int64_t vocab);

}  // namespace engine::cuda
