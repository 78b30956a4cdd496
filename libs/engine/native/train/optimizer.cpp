#include "train/optimizer.h"

#include <array>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "ops/adamw.h"
#include "ops/dynamic8.h"

namespace engine {

std::vector<OptimizerRun> optimizer_runs(const OptimizerOptions& options, const std::vector<TrainableTensor>& tensors) {
  require(options.beta1 >= 0 && options.beta1 < 1, "beta1 is ", options.beta1, "; use a value from 0 to below 1");
  require(options.beta2 >= 0 && options.beta2 < 1, "beta2 is ", options.beta2, "; use a value from 0 to below 1");
  require(std::isfinite(options.epsilon) && options.epsilon > 0, "epsilon is ", options.epsilon, "; use a value above 0");
  require(std::isfinite(options.weight_decay) && options.weight_decay >= 0, "weight decay is ", options.weight_decay, "; use 0 or more");
  std::vector<OptimizerRun> runs;
  for (const TrainableTensor& tensor : tensors) {
    const bool eight_bit = options.kind == OptimizerKind::adamw_8bit && tensor.size >= kMin8BitSize && !tensor.embedding;
    if (!runs.empty()) {
      OptimizerRun& last = runs.back();
      const bool adjacent = last.offset + last.size == tensor.offset, aligned = !eight_bit || last.size % kDynamicBlock == 0;
      if (adjacent && aligned && last.decay == tensor.decay && last.eight_bit == eight_bit) {
        last.size += tensor.size;
        continue;
      }
    }
    runs.push_back({tensor.name, tensor.offset, tensor.size, tensor.decay, eight_bit});
  }
  return runs;
}

std::vector<TensorSpec> optimizer_state_specs(const OptimizerRun& run) {
  if (!run.eight_bit) return {{run.name + ".m", Dtype::f32, {run.size}}, {run.name + ".v", Dtype::f32, {run.size}}};
  const std::int64_t blocks = dynamic_blocks(run.size);
  return {{run.name + ".m_codes", Dtype::u8, {run.size}},
          {run.name + ".v_codes", Dtype::u8, {run.size}},
          {run.name + ".m_absmax", Dtype::f32, {blocks}},
          {run.name + ".v_absmax", Dtype::f32, {blocks}}};
}

AdamW adamw_of(const OptimizerOptions& options, const OptimizerRun& run, double learning_rate, std::int64_t step, float grad_scale) {
  AdamW adamw;
  adamw.learning_rate = static_cast<float>(learning_rate);
  adamw.beta1 = static_cast<float>(options.beta1);
  adamw.beta2 = static_cast<float>(options.beta2);
  adamw.epsilon = static_cast<float>(options.epsilon);
  adamw.weight_decay = run.decay ? static_cast<float>(options.weight_decay) : 0.0f;
  adamw.step = step;
  adamw.grad_scale = grad_scale;
  adamw.decay = options.kind == OptimizerKind::adamw ? DecayOrder::before_update : DecayOrder::after_update;
  return adamw;
}

Optimizer::Optimizer(const OptimizerOptions& options, const std::vector<TrainableTensor>& tensors) : options_(options) {
  for (OptimizerRun& made : optimizer_runs(options, tensors)) {
    Run& run = runs_.emplace_back(Run{std::move(made), {}, {}, {}, {}, {}, {}});
    const auto size = static_cast<std::size_t>(run.size), blocks = static_cast<std::size_t>(dynamic_blocks(run.size));
    if (run.eight_bit) {
      run.m_codes.assign(size, 0);
      run.v_codes.assign(size, 0);
      run.m_absmax.assign(blocks, 0.0f);
      run.v_absmax.assign(blocks, 0.0f);
    } else {
      run.m.assign(size, 0.0f);
      run.v.assign(size, 0.0f);
    }
  }
}

void Optimizer::update(const Exec& ex, double learning_rate, float grad_scale, float* values, const float* gradients) {
  ++updates_;
  for (Run& run : runs_) {
    const AdamW adamw = adamw_of(options_, run, learning_rate, updates_, grad_scale);
    float* p = values + run.offset;
    const float* g = gradients + run.offset;
    if (run.eight_bit)
      adamw_8bit(ex, adamw, p, g, run.m_codes.data(), run.v_codes.data(), run.m_absmax.data(), run.v_absmax.data(), run.size);
    else
      adamw_f32(ex, adamw, p, g, run.m.data(), run.v.data(), run.size);
  }
}

std::int64_t Optimizer::state_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const Run& run : runs_)
    bytes += run.eight_bit ? 2 * run.size + 8 * static_cast<std::int64_t>(run.m_absmax.size()) : 8 * run.size;
  return bytes;
}

std::vector<NamedTensor> Optimizer::state() const {
  std::vector<NamedTensor> tensors;
  for (const Run& run : runs_) {
    const std::array<const void*, 4> eight_bit{run.m_codes.data(), run.v_codes.data(), run.m_absmax.data(), run.v_absmax.data()};
    const std::array<const void*, 4> wide{run.m.data(), run.v.data(), nullptr, nullptr};
    std::size_t i = 0;
    for (TensorSpec& spec : optimizer_state_specs(run)) tensors.push_back({std::move(spec), (run.eight_bit ? eight_bit : wide)[i++]});
  }
  return tensors;
}

void check_optimizer_state(const SafetensorsFile& file, const std::vector<TensorSpec>& wanted) {
  require(Code::corrupt, file.tensors().size() == wanted.size(), "the optimizer's state has ", file.tensors().size(), " tensors; this training has ",
          wanted.size());
  for (const TensorSpec& spec : wanted) {
    const TensorView& stored = file.at(spec.name);
    require(Code::corrupt, stored.dtype == spec.dtype && stored.shape == spec.shape, "the optimizer's state ", spec.name,
            " has another type or length than this training's");
  }
}

void Optimizer::restore(const SafetensorsFile& file, std::int64_t updates) {
  const std::vector<NamedTensor> wanted = state();
  std::vector<TensorSpec> specs;
  for (const NamedTensor& tensor : wanted) specs.push_back(tensor.spec);
  check_optimizer_state(file, specs);
  // state() lists this object's own vectors; only their const view is public.
  for (const NamedTensor& tensor : wanted) {
    const TensorView& stored = file.at(tensor.spec.name);
    std::memcpy(const_cast<void*>(tensor.data), stored.data, static_cast<std::size_t>(stored.bytes));
  }
  updates_ = updates;
}

}  // namespace engine
