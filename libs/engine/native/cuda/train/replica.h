// replica.h: one device's copy of a training run: base, adapter, optimizer state and the work of a step.
//   Everything is given to the device's streams and returns before it is done; finish() waits. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/cancel.h"
#include "cuda/model/layer.h"
#include "cuda/train/input_copies.h"
#include "cuda/train/memory_plan.h"
#include "model/rope_cache.h"
#include "train/backend.h"
#include "train/setup.h"

namespace engine::cuda {

class Replica {
 public:
  // Takes fixed memory and uploads the base and the adapter. `tokens` is planned for, so that a budget that is too small shows before anything is taken:
  // throws oom then. Borrows `adapter` and `runs`; `budget` 0 is what the device has free.
  Replica(int device, const TrainingBase& base, const LoraAdapter& adapter, const std::vector<OptimizerRun>& runs, std::int64_t tokens, std::int64_t budget);
  ~Replica();
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  int device() const noexcept { return device_; }
  const MemoryPlan& plan() const noexcept { return plan_; }
  TrainingPlan describe() const { return plan_.describe(shape()); }
  cudaStream_t stream() const noexcept { return stream_; }
  float* gradients() const noexcept { return fixed_.gradients; }

  // Room for micro-batches of so many tokens. Throws oom with everything as it was when the budget does not allow them.
  void reserve(std::int64_t tokens);
  enum class Clear : std::uint8_t { loss, loss_and_gradients };
  void begin(Clear clear);
  // Adds the gradient of weight · Σ loss to gradients() and that loss to the step's.
  struct Noise {
    StreamKeys keys{};
    float dropout = 0, neftune_alpha = 0;
  };
  void micro_step(const LabelledBatch& batch, float weight, const Noise& noise, const CancelFlag* cancel);
  // The loss alone.
  void evaluate(const LabelledBatch& batch, float weight, const CancelFlag* cancel);
  // log p of every label of one micro-batch; waits.
  std::vector<float> score(const LabelledBatch& batch, const CancelFlag* cancel);
  // The norm of gradients(), clipping and update `number` (from 1). A norm that is not finite changes nothing. Once for each finish().
  void update(const OptimizerOptions& options, double learning_rate, double max_grad_norm, std::int64_t number);
  StepScalars finish();
  // Of the step that finish() ended.
  const PhaseTimes& phases() const noexcept { return phases_; }
  // Lets work in flight end; throws nothing.
  void abandon() noexcept;

  // DoRA's magnitudes become the norms of what they scale, as a fresh adapter's are.
  void begin_magnitudes();
  // Host copies of the fp32 values, the gradients, and a run's state as optimizer_state_specs lists it; waits.
  void read_values(float* to);
  void write_values(const float* from);
  void read_gradients(float* to);
  std::vector<std::vector<std::uint8_t>> read_state(std::size_t run);
  void write_state(std::size_t run, std::size_t tensor, const void* from);

 private:
  RunShape shape() const { return {base_.spec, geometry_, format_, runs_, adapter_}; }
  void take_step_memory(const MemoryPlan& plan);
  StepInput stage_input(const LabelledBatch& batch, float weight, const Noise& noise);
  DevicePass make_pass(const StepInput& input, float dropout);
  void forward(const DevicePass& pass, const StepInput& input, float neftune_alpha, bool for_backward, const CancelFlag* cancel);
  // `losses`: where the host wants every label's, or null.
  void loss(const DevicePass& pass, const StepInput& input, bool gradient, float* losses = nullptr);
  void backward(const DevicePass& pass, const StepInput& input, const CancelFlag* cancel);
  void values_changed();
  void mark(double PhaseTimes::* phase);
  // Keeps the host a few layers ahead of the device, so that a cancelled step ends soon.
  void pace(const CancelFlag* cancel);
  View<bf16> x(const DevicePass& pass, std::int64_t layer) const;

  int device_;
  TrainingBase base_;
  const LoraAdapter& adapter_;
  const std::vector<OptimizerRun>& runs_;
  Geometry geometry_;
  BaseFormat format_;
  std::int64_t lowest_;  // the layer at which the backward ends
  MemoryPlan plan_;

  // The stream outlives what its work uses.
  DeviceMemory fixed_memory_, step_memory_;
  PinnedMemory host_embedding_, results_, constants_;
  std::array<PinnedMemory, 2> staging_;
  Stream stream_;
  std::array<Event, 2> staged_;
  std::array<bool, 2> staging_used_{};
  std::size_t next_staging_ = 0;
  FixedMemory fixed_;
  StepMemory step_;
  Gemm gemm_;
  Beside beside_;
  std::unique_ptr<WeightStage> stage_;
  std::unique_ptr<InputCopies> copies_;
  RopeCache ropes_;
  struct Uploaded {
    const void* table = nullptr;
    std::int64_t rows = 0;
  };
  std::vector<Uploaded> rotations_;
  static constexpr std::size_t kLayersAhead = 6;
  std::array<Event, kLayersAhead> paces_;
  std::size_t paced_ = 0;
  // Points in the step's work; the time from a mark to the next is the next one's phase (null: nobody's).
  struct Mark {
    std::unique_ptr<Event> event;
    double PhaseTimes::* phase;
  };
  std::vector<Mark> marks_;
  std::size_t marked_ = 0;
  PhaseTimes phases_;
};

}  // namespace engine::cuda
