// setup.h: what a training run starts from, on every device alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/lora.h"
#include "train/any_trainer.h"
#include "train/full_parameters.h"

namespace engine {

// Throws invalid for a schedule, clipping norm, noise or budget out of range. The optimizer checks its own options.
void check_trainer_options(const TrainerOptions& options);

// The options, with the ranks and alphas that the initial adapter has of its own for some modules when they name none: a run continues an adapter as it
// is. Throws what reading the adapter throws.
TrainerOptions with_initial_patterns(TrainerOptions options);

// The adapter of options.lora (which must be set): PEFT's initialization from the seed, which start_from() completes with what it takes from the base, or
// the initial adapter's values, which bind() completes. Throws invalid when that adapter is not of the options' shape, and what reading it throws.
LoraAdapter initial_adapter(const ModelSpec& spec, const TrainerOptions& options);

// Throws invalid where a stored adapter has not the tensors of the one that is trained.
void require_same_tensors(const LoraAdapter& stored, const LoraAdapter& trained);

// The adapter's tensors in the order of its flat array.
std::vector<TrainableTensor> trainable_tensors(const LoraAdapter& adapter);
// All parameters of a model, in theirs.
std::vector<TrainableTensor> trainable_tensors(const std::vector<FullParameters::Entry>& parameters);

// Keys of the random streams of one micro-batch. They depend on seed, step and micro-batch alone, so a resumed run draws the same numbers.
struct StreamKeys {
  std::uint64_t dropout, neftune;
};
StreamKeys stream_keys(std::uint64_t seed, std::int64_t step, std::size_t micro);

// The micro-batches of a step, checked; `all_weights`: every weight is trained. Throws invalid for a malformed one, for none at all, and when no token is to be predicted.
struct LabelledStep {
  std::vector<LabelledBatch> batches;
  std::int64_t tokens = 0, labels = 0;
  double flops = 0;  // train/flops.h
  float weight() const noexcept { return 1.0f / static_cast<float>(labels); }  // of one label in the step's mean loss
};
LabelledStep label_step(const ModelSpec& spec, std::span<const MicroBatch> micros, bool all_weights = false);

}  // namespace engine
