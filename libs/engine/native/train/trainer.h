// trainer.h: training on the CPU: the definition of what a step computes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/arena.h"
#include "model/lora.h"
#include "model/model.h"
#include "train/any_trainer.h"
#include "train/batch.h"
#include "train/full_parameters.h"
#include "train/micro_step.h"
#include "train/optimizer.h"
#include "train/setup.h"

namespace engine {

class Trainer final : public AnyTrainer {
 public:
  // Throws invalid for options out of range, oom when the memory budget cannot suffice (before anything is allocated), and what reading an initial adapter
  // throws. A step or evaluation whose micro-batches are too long for the budget throws oom too, and leaves everything as it was.
  Trainer(std::shared_ptr<Model> model, const TrainerOptions& options);

  std::int64_t step() const noexcept override { return step_; }
  std::int64_t trainable_parameter_count() const noexcept override { return trainable_count_; }
  std::optional<TrainingPlan> plan() const override;
  StepResult train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr) override;
  Evaluation evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel = nullptr) override;
  std::vector<std::vector<float>> score_adapter(const std::filesystem::path& dir, std::span<const std::vector<std::uint32_t>> sequences,
                                                const CancelFlag* cancel = nullptr) override;
  void save(const std::filesystem::path& dir, const std::string& base_model_name) const override;
  void save_checkpoint(const std::filesystem::path& dir) const override;
  void restore_checkpoint(const std::filesystem::path& dir) override;
  void save_gradients(const std::filesystem::path& file) const override;

 private:
  float* values() noexcept { return adapter_ ? adapter_->data() : full_->data(); }
  std::int64_t value_count() const noexcept { return adapter_ ? adapter_->size() : full_->size(); }
  const DecoderWeights& weights() const noexcept { return full_ ? full_->view() : model_->weights(); }
  TrainingPlan plan_for(const LabelledBatch& batch) const;
  void make_room(const LabelledStep& step);  // plans all micro-batches, then takes the scratch of the largest
  Pass make_pass(std::span<const LoraSegment> segments, const CancelFlag* cancel);
  void follow_values();  // what is derived from the values: DoRA's norms
  std::int64_t held_bytes() const;

  std::shared_ptr<Model> model_;
  TrainerOptions options_;
  std::optional<LoraAdapter> adapter_;
  std::unique_ptr<FullParameters> full_;
  std::vector<float> gradients_;
  bool gradients_complete_ = false;
  bool norms_stale_ = false;  // the values changed since the adapter was bound
  std::optional<Optimizer> optimizer_;
  Arena arena_;
  RopeCache ropes_;
  std::int64_t step_ = 0, trainable_count_ = 0, peak_bytes_ = 0;
  std::optional<TrainingPlan> plan_;  // the largest so far
  mutable std::mutex busy_;  // calls from several threads take turns
};

}  // namespace engine
