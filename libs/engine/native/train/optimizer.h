// optimizer.h: AdamW over a flat array of parameters that is divided into named tensors.
//   f32    two fp32 moments for each value; decay before the update, as torch does
//   8-bit  bitsandbytes' blockwise 8-bit moments for tensors of at least kMin8BitSize values, except embeddings, which keep fp32 moments as
//          transformers configures it; decay after the update, as bitsandbytes does
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/exec.h"
#include "formats/safetensors.h"
#include "ops/adamw.h"

namespace engine {

enum class OptimizerKind : std::uint8_t { adamw, adamw_8bit };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::adamw;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
};

// One tensor of the flat array.
struct TrainableTensor {
  std::string name;
  std::int64_t offset = 0, size = 0;
  bool decay = true;        // false: biases and norms
  bool embedding = false;
};

// Consecutive tensors that one call can update: neighbours without a gap, with the same decay and the same kind of state. With 8-bit state the join
// falls on a block's edge.
struct OptimizerRun {
  std::string name;  // of its first tensor
  std::int64_t offset = 0, size = 0;
  bool decay = true, eight_bit = false;
};
// Checks the options as Optimizer's constructor does. `tensors` ascending by offset.
std::vector<OptimizerRun> optimizer_runs(const OptimizerOptions& options, const std::vector<TrainableTensor>& tensors);
// The tensors of one run's state, by name, without data. 8-bit: "<run>.m_codes", ".v_codes", ".m_absmax", ".v_absmax"; fp32: ".m", ".v".
std::vector<TensorSpec> optimizer_state_specs(const OptimizerRun& run);
// Throws corrupt when the file's tensors are not exactly these.
void check_optimizer_state(const SafetensorsFile& file, const std::vector<TensorSpec>& wanted);
// Update `step` (from 1) of a run, with gradients scaled by grad_scale.
AdamW adamw_of(const OptimizerOptions& options, const OptimizerRun& run, double learning_rate, std::int64_t step, float grad_scale);

class Optimizer {
 public:
  // `tensors` ascending by offset. Throws invalid for betas outside [0, 1), an epsilon that is not positive, a negative decay.
  Optimizer(const OptimizerOptions& options, const std::vector<TrainableTensor>& tensors);

  // values -= update of gradients · grad_scale. Counts the update. Gradients must be finite.
  void update(const Exec& ex, double learning_rate, float grad_scale, float* values, const float* gradients);

  std::int64_t updates() const noexcept { return updates_; }
  std::int64_t state_bytes() const noexcept;

  // All state but the update count, as tensors that borrow from this object.
  std::vector<NamedTensor> state() const;
  // Takes over what state() gave; throws corrupt, having changed nothing, when the file's tensors are not exactly those.
  void restore(const SafetensorsFile& file, std::int64_t updates);

 private:
  struct Run : OptimizerRun {
    std::vector<float> m, v;                       // fp32 state
    std::vector<std::uint8_t> m_codes, v_codes;    // 8-bit state
    std::vector<float> m_absmax, v_absmax;
  };

  OptimizerOptions options_;
  std::vector<Run> runs_;
  std::int64_t updates_ = 0;
};

}  // namespace engine
