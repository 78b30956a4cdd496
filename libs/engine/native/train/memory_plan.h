// memory_plan.h: what a training run on the CPU takes, to the byte, before it takes anything.
#pragma once

#include <cstdint>

#include "formats/hf_folder.h"
#include "model/spec.h"
#include "model/weights.h"
#include "train/any_trainer.h"

namespace engine {

// The plan for micro-batches of at most `tokens` tokens, all in one row and all to be predicted: what most of them need, and none more.
// `weight_bytes`: of the base as held, 16- or 32-bit in full-parameter mode. With a memory budget, as many layers keep their activations as fit; without
// gradient checkpointing, all must.
// Throws invalid for options out of range, oom with the numbers when the budget does not suffice.
TrainingPlan plan_training(const ModelSpec& spec, std::int64_t weight_bytes, const TrainerOptions& options, std::int64_t tokens);

// The same for a batch of so many labels.
TrainingPlan plan_training(const ModelSpec& spec, std::int64_t weight_bytes, const TrainerOptions& options, std::int64_t tokens, std::int64_t labels);

// Bytes that the scratch of a plan takes: what the trainer's arena is.
std::int64_t arena_bytes(const TrainingPlan& plan);

// Bytes that the weights of a folder will take once loaded: ModelWeights::bytes().
std::int64_t loaded_weight_bytes(const ModelSpec& spec, const HfFolder& folder, QuantizeOnLoad quantize);
// The same where only the size of the folder's weights is known: as many bytes as are stored, or the blocks' linears in NF4 and the rest in the type that
// the size tells. Within what names and alignment take in a file (norms, held in fp32, among them).
std::int64_t loaded_weight_bytes(const ModelSpec& spec, std::int64_t stored_bytes, QuantizeOnLoad quantize);

}  // namespace engine
