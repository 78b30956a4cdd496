// any_trainer.h: one training run on whatever device: one optimizer step at a time over micro-batches, on an adapter or on all weights.
//   The loop is the caller's. The CPU's Trainer defines what a step computes; a GPU's is compared with it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "formats/peft_adapter.h"
#include "train/batch.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace engine {

inline constexpr std::int64_t kActivationBudget = std::int64_t{640} << 20;

struct TrainerOptions {
  std::optional<LoraConfig> lora;               // absent: every weight is trained
  std::filesystem::path initial_adapter_dir;    // PEFT folder to start from; empty: PEFT's initialization from the seed
  OptimizerOptions optimizer;
  Schedule schedule;
  double max_grad_norm = 1.0;                   // 0: no clipping
  std::uint64_t seed = 0;
  // true: activations take at most kActivationBudget (or one layer's, if that is more); beyond it layers are computed again in the backward.
  // false: all are kept. The results are the same bits.
  bool gradient_checkpointing = true;
  double neftune_alpha = 0;
  // Bytes of the device's memory that the whole run may take, its weights included; 0: on a GPU what is free, on a CPU no limit. On a CPU it takes
  // kActivationBudget's place; layers keep what fits.
  std::int64_t memory_budget = 0;
  // The longest micro-batch to come, so that memory is planned (on a GPU also taken) before the first step; 0: planned as they come.
  std::int64_t micro_batch_tokens = 0;
};

// The parts of a plan in bytes, on a CPU. Positions, row bookkeeping and the threads' packing buffers are not among them: some kilobytes, and what the
// model's thread pool holds for everyone (ThreadPool::workspace_bytes).
struct TrainingBytes {
  std::int64_t weights = 0;      // the frozen base, as held
  std::int64_t adapter = 0;      // trained values, DoRA's norms; all weights in full-parameter mode
  std::int64_t gradients = 0, optimizer = 0;
  std::int64_t checkpoints = 0;  // inputs of layers, kept from the forward to the backward
  std::int64_t activations = 0;  // of the layers that keep theirs, at least one
  std::int64_t live = 0;         // scratch of one layer's forward or backward, or of the loss without its logits: whichever is most
  std::int64_t logits = 0;       // a chunk's, where the loss is what takes most
  std::int64_t total() const noexcept { return weights + adapter + gradients + optimizer + checkpoints + activations + live + logits; }
};

// How memory is spent, decided before any of it is taken.
struct TrainingPlan {
  std::int64_t budget_bytes = 0, device_bytes = 0, pinned_bytes = 0;  // device_bytes is exact: what the run allocates
  std::int64_t tokens = 0;                                            // of the longest micro-batch planned for
  // Layers by what they keep from the forward for the backward, and those whose weights are kept decoded.
  std::int64_t kept_layers = 0, partly_kept_layers = 0, recomputed_layers = 0, offloaded_layers = 0, decoded_layers = 0;
  bool embedding_on_device = true;
  TrainingBytes parts;  // on a CPU
  std::string table;  // every part with its bytes, for people
};

// Time that a step's parts took on the device, of all its micro-batches together, in milliseconds. All 0 on a CPU.
struct PhaseTimes {
  double forward = 0, loss = 0, backward = 0, update = 0;
};

struct StepResult {
  std::int64_t step = 0;          // this one, from 1
  double loss = 0;                // mean over all labelled tokens of all micro-batches
  double grad_norm = 0;           // before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0, trainable_tokens = 0;
  bool skipped = false;           // the gradient was not finite: weights and optimizer state are as before
  double duration_ms = 0;
  double flops = 0;               // that it could not do without (train/flops.h)
  std::int64_t peak_bytes = 0;    // weights, parameters, gradients, optimizer state and scratch held so far
  PhaseTimes phases;
};

struct Evaluation {
  double loss = 0;  // mean over the labelled tokens
  std::int64_t trainable_tokens = 0;
};

class AnyTrainer {
 public:
  virtual ~AnyTrainer() = default;
  AnyTrainer() = default;
  AnyTrainer(const AnyTrainer&) = delete;
  AnyTrainer& operator=(const AnyTrainer&) = delete;

  virtual std::int64_t step() const noexcept = 0;
  virtual std::int64_t trainable_parameter_count() const noexcept = 0;
  // Absent before the first step of a run whose micro-batches were not announced.
  virtual std::optional<TrainingPlan> plan() const = 0;

  // One optimizer step. The loss is normalised over the labelled tokens of all micro-batches, so how they are divided does not matter.
  // A skipped step counts as a step (the schedule and the random streams move on), but not as an optimizer update.
  // Throws invalid (a malformed batch, no labelled token) and cancelled; either leaves weights, optimizer, step and random state as they were;
  // device_lost when the device is beyond use in this process.
  virtual StepResult train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr) = 0;
  virtual Evaluation evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr) = 0;
  // log p of every token but the first of each sequence, by its own, with the adapter in `dir` in place of what is trained: on the device, with what is there.
  // Nothing of the run changes. Throws invalid where every weight is trained, for an adapter with other tensors and for a sequence of less than two tokens,
  // and what reading the adapter throws.
  virtual std::vector<std::vector<float>> score_adapter(const std::filesystem::path& dir, std::span<const std::vector<std::uint32_t>> sequences,
                                                        const CancelFlag* cancel = nullptr) = 0;

  // A PEFT folder, or in full-parameter mode a Hugging Face folder in the base's stored dtype. Atomic; replaces what is there.
  virtual void save(const std::filesystem::path& dir, const std::string& base_model_name) const = 0;
  // Everything a bit-exact continuation needs. Atomic; replaces what is there.
  virtual void save_checkpoint(const std::filesystem::path& dir) const = 0;
  // Continues from a checkpoint of the same model shape and the same options. Throws corrupt or invalid with the reason, having changed nothing.
  virtual void restore_checkpoint(const std::filesystem::path& dir) = 0;
  // Gradients of the last step before clipping: adapters under PEFT's names, full parameters under their own. Throws invalid before the first step.
  virtual void save_gradients(const std::filesystem::path& file) const = 0;
};

}  // namespace engine
