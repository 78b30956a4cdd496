// trainer.h: one optimizer step at a time over micro-batches, on an adapter or on all weights. The loop is the caller's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "model/arena.h"
#include "model/lora.h"
#include "model/model.h"
#include "train/batch.h"
#include "train/full_parameters.h"
#include "train/micro_step.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace engine {

inline constexpr std::int64_t kActivationBudget = std::int64_t{256} << 20;

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
};

struct StepResult {
  std::int64_t step = 0;          // this one, from 1
  double loss = 0;                // mean over all labelled tokens of all micro-batches
  double grad_norm = 0;           // before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0, trainable_tokens = 0;
  bool skipped = false;           // the gradient was not finite: weights and optimizer state are as before
  double duration_ms = 0;
  std::int64_t peak_bytes = 0;    // weights, parameters, gradients, optimizer state and scratch held so far
};

struct Evaluation {
  double loss = 0;  // mean over the labelled tokens
  std::int64_t trainable_tokens = 0;
};

class Trainer {
 public:
  // Throws invalid for options out of range, and what reading an initial adapter throws.
  Trainer(std::shared_ptr<Model> model, const TrainerOptions& options);

  std::int64_t step() const noexcept { return step_; }
  std::int64_t trainable_parameter_count() const noexcept { return trainable_count_; }

  // One optimizer step. The loss is normalised over the labelled tokens of all micro-batches, so how they are divided does not matter.
  // A skipped step counts as a step (the schedule and the random streams move on), but not as an optimizer update.
  // Throws invalid (a malformed batch, no labelled token) and cancelled; either leaves weights, optimizer, step and random state as they were.
  StepResult train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr);
  Evaluation evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr);

  // A PEFT folder, or in full-parameter mode a Hugging Face folder in the base's stored dtype. Atomic; replaces what is there.
  void save(const std::filesystem::path& dir, const std::string& base_model_name) const;
  // Everything a bit-exact continuation needs. Atomic; replaces what is there.
  void save_checkpoint(const std::filesystem::path& dir) const;
  // Continues from a checkpoint of the same model shape and the same options. Throws corrupt or invalid with the reason, having changed nothing.
  void restore_checkpoint(const std::filesystem::path& dir);
  // Gradients of the last step before clipping: adapters under PEFT's names, full parameters under their own. Throws invalid before the first step.
  void save_gradients(const std::filesystem::path& file) const;

 private:
  float* values() noexcept { return adapter_ ? adapter_->data() : full_->data(); }
  std::int64_t value_count() const noexcept { return adapter_ ? adapter_->size() : full_->size(); }
  const DecoderWeights& weights() const noexcept { return full_ ? full_->view() : model_->weights(); }
  std::vector<TrainableTensor> trainable_tensors() const;
  std::vector<LabelledBatch> label_all(std::span<const MicroBatch> micros, std::int64_t& tokens, std::int64_t& labels) const;
  Pass make_pass(std::span<const LoraSegment> segments, const CancelFlag* cancel);
  std::int64_t held_bytes() const;

  std::shared_ptr<Model> model_;
  TrainerOptions options_;
  std::optional<LoraAdapter> adapter_;
  std::unique_ptr<FullParameters> full_;
  std::vector<float> gradients_;
  bool gradients_complete_ = false;
  std::optional<Optimizer> optimizer_;
  Arena arena_;
  RopeCache ropes_;
  std::int64_t step_ = 0, trainable_count_ = 0, peak_bytes_ = 0;
  mutable std::mutex busy_;  // calls from several threads take turns
};

}  // namespace engine
