// cuda_trainer.h: QLoRA training on one or several GPUs. What a step computes is defined by the CPU's Trainer with Compute::bf16; activations are bf16 here
//   (docs/adr says why), so the two agree to bf16's rounding, while two runs on a device agree bit for bit.
//   With several devices each takes every n-th micro-batch of a step; gradients are added up and every device makes the same update.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "cuda/train/gradient_sum.h"
#include "cuda/train/replica.h"
#include "train/any_trainer.h"
#include "train/backend.h"

namespace engine::cuda {

class CudaTrainer final : public AnyTrainer {
 public:
  // Throws invalid for options out of range, unsupported for a shape or base that the device does not train, oom before anything is allocated.
  // `sum` adds up several replicas' gradients; null chooses one.
  CudaTrainer(const TrainingBase& base, std::span<const int> devices, const TrainerOptions& options, std::unique_ptr<GradientSum> sum = nullptr);

  std::int64_t step() const noexcept override { return step_; }
  std::int64_t trainable_parameter_count() const noexcept override { return adapter_.size(); }
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
  // Runs `work` as the only one on the devices. After device_lost every later call throws it at once; after any other error the devices are idle.
  template <class Work>
  auto alone(const Work& work) const;
  // f(replica, number) for each; at the same time when there are several devices.
  template <class F>
  void on_each(const F& f) const;
  void reserve(const LabelledStep& step) const;
  LoraAdapter current_adapter() const;

  TrainingBase base_;
  TrainerOptions options_;
  LoraAdapter adapter_;  // layout, and the values it began with
  std::vector<OptimizerRun> runs_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::unique_ptr<GradientSum> sum_;
  bool gradients_complete_ = false;
  std::int64_t step_ = 0, updates_ = 0;
  mutable bool lost_ = false;
  mutable std::mutex busy_;
};

}  // namespace engine::cuda
