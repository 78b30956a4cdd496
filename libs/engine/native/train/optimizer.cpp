#include "train/optimizer.h"

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "ops/adamw.h"
#include "ops/dynamic8.h"

namespace engine {
namespace {

template <class T>
NamedTensor named(const std::string& run, const char* what, Dtype dtype, const std::vector<T>& values) {
  return {{run + "." + what, dtype, {static_cast<std::int64_t>(values.size())}}, values.data()};
}

}  // namespace

Optimizer::Optimizer(const OptimizerOptions& options, const std::vector<TrainableTensor>& tensors) : options_(options) {
  require(options.beta1 >= 0 && options.beta1 < 1, "beta1 is ", options.beta1, "; use a value from 0 to below 1");
  require(options.beta2 >= 0 && options.beta2 < 1, "beta2 is ", options.beta2, "; use a value from 0 to below 1");
  require(std::isfinite(options.epsilon) && options.epsilon > 0, "epsilon is ", options.epsilon, "; use a value above 0");
  require(std::isfinite(options.weight_decay) && options.weight_decay >= 0, "weight decay is ", options.weight_decay, "; use 0 or more");
  for (const TrainableTensor& tensor : tensors) {
    const bool eight_bit = options.kind == OptimizerKind::adamw_8bit && tensor.size >= kMin8BitSize && !tensor.embedding;
    if (!runs_.empty()) {
      Run& last = runs_.back();
      const bool adjacent = last.offset + last.size == tensor.offset, aligned = !eight_bit || last.size % kDynamicBlock == 0;
      if (adjacent && aligned && last.decay == tensor.decay && last.eight_bit == eight_bit) {
        last.size += tensor.size;
        continue;
      }
    }
    Run& run = runs_.emplace_back();
    run.name = tensor.name;
    run.offset = tensor.offset;
    run.size = tensor.size;
    run.decay = tensor.decay;
    run.eight_bit = eight_bit;
  }
  for (Run& run : runs_) {
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
    AdamW adamw;
    adamw.learning_rate = static_cast<float>(learning_rate);
    adamw.beta1 = static_cast<float>(options_.beta1);
    adamw.beta2 = static_cast<float>(options_.beta2);
    adamw.epsilon = static_cast<float>(options_.epsilon);
    adamw.weight_decay = run.decay ? static_cast<float>(options_.weight_decay) : 0.0f;
    adamw.step = updates_;
    adamw.grad_scale = grad_scale;
    adamw.decay = options_.kind == OptimizerKind::adamw ? DecayOrder::before_update : DecayOrder::after_update;
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
    if (run.eight_bit) {
      tensors.push_back(named(run.name, "m_codes", Dtype::u8, run.m_codes));
      tensors.push_back(named(run.name, "v_codes", Dtype::u8, run.v_codes));
      tensors.push_back(named(run.name, "m_absmax", Dtype::f32, run.m_absmax));
      tensors.push_back(named(run.name, "v_absmax", Dtype::f32, run.v_absmax));
    } else {
      tensors.push_back(named(run.name, "m", Dtype::f32, run.m));
      tensors.push_back(named(run.name, "v", Dtype::f32, run.v));
    }
  }
  return tensors;
}

void Optimizer::restore(const SafetensorsFile& file, std::int64_t updates) {
  const std::vector<NamedTensor> wanted = state();
  require(Code::corrupt, file.tensors().size() == wanted.size(), "the optimizer's state has ", file.tensors().size(), " tensors; this training has ",
          wanted.size());
  for (const NamedTensor& tensor : wanted) {
    const TensorView& stored = file.at(tensor.spec.name);
    require(Code::corrupt, stored.dtype == tensor.spec.dtype && stored.shape == tensor.spec.shape, "the optimizer's state ", tensor.spec.name,
            " has another type or length than this training's");
  }
  // state() lists this object's own vectors; only their const view is public.
  for (const NamedTensor& tensor : wanted) {
    const TensorView& stored = file.at(tensor.spec.name);
    std::memcpy(const_cast<void*>(tensor.data), stored.data, static_cast<std::size_t>(stored.bytes));
  }
  updates_ = updates;
}

}  // namespace engine
