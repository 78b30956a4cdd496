// micro_step.h: loss and gradients of one micro-batch.
#pragma once

#include <cstdint>

#include "model/backward.h"
#include "train/batch.h"

namespace engine {

// Layers keep their activations from the forward to the backward while these fit the budget; the others keep only their input and are computed
// again. The last layers keep theirs first: their backward comes first. No bit of the result depends on it.
inline constexpr std::int64_t kKeepAll = std::int64_t{1} << 62;

struct MicroStepOptions {
  std::int64_t activation_budget = kKeepAll;  // bytes
  // NEFTune (Jain et al., 2023): uniform noise of ± alpha / √(row length · hidden) on the embeddings. 0 = off.
  float neftune_alpha = 0;
  std::uint64_t neftune_key = 0;
};

// No gradient goes below this layer: nothing there is trained. Null: all parameters are.
std::int64_t lowest_trained_layer(const LoraAdapter* adapter);
// How many of the trained layers keep their activations, at least one.
std::int64_t layers_kept(std::int64_t budget, std::int64_t layer_bytes, std::int64_t trained_layers);

// Adds the gradient of weight · Σ loss to `gradients` and returns weight · Σ loss. Checks the pass's cancel flag between layers.
// In LoRA mode the pass has one segment with the adapter; it must have been checked by label_batch.
double run_micro_step(const Pass& pass, const LabelledBatch& batch, float weight, const MicroStepOptions& options, const Gradients& gradients);

// The loss alone, without dropout or noise.
double run_evaluation(const Pass& pass, const LabelledBatch& batch, float weight);

}  // namespace engine
