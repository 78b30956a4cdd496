#include "train/memory_plan.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "model/forward.h"
#include "ops/dora.h"
#include "ops/nf4.h"
#include "train/full_parameters.h"
#include "train/loss.h"
#include "train/micro_step.h"
#include "train/setup.h"

namespace engine {
namespace {

constexpr std::int64_t kFloat = 4;

std::vector<TrainableTensor> tensors_of(const ModelSpec& spec, const std::optional<LoraAdapter>& adapter) {
  if (adapter) return trainable_tensors(*adapter);
  return trainable_tensors(FullParameters::layout_of(spec));
}

std::int64_t optimizer_bytes(const TrainerOptions& options, const std::vector<TrainableTensor>& tensors) {
  std::int64_t bytes = 0;
  for (const OptimizerRun& run : optimizer_runs(options.optimizer, tensors))
    for (const TensorSpec& spec : optimizer_state_specs(run)) bytes += element_count(spec.shape) * dtype_size(spec.dtype);
  return bytes;
}

// What each part of run_micro_step takes from its arena, found by taking the same from one that only counts. The order is the pass's.
class MicroStepScratch {
 public:
  MicroStepScratch(const ModelSpec& spec, const LoraAdapter* adapter, std::int64_t tokens, std::int64_t labels)
      : spec_(spec), adapter_(adapter), tokens_(tokens), labels_(labels), lowest_(lowest_trained_layer(adapter)),
        dropout_(adapter != nullptr && adapter->config().dropout > 0) {}

  std::int64_t trained_layers() const { return spec_.layers - lowest_; }

  // Positions, layer inputs and the gradient that walks down.
  std::int64_t checkpoints() const {
    return measured([&](Arena& arena) {
      arena.take<std::int32_t>(tokens_);
      arena.take<std::int32_t>(tokens_);
      for (std::int64_t layer = 0; layer <= spec_.layers; ++layer)
        if (layer < 2 || layer >= lowest_) arena.rows(tokens_, spec_.hidden);
      arena.rows(tokens_, spec_.hidden);
    });
  }
  std::int64_t one_layer() const {
    return measured([&](Arena& arena) { take_activations(arena, spec_, tokens_, adapter_, Keep::for_backward); });
  }
  std::int64_t logits() const {
    return measured([&](Arena& arena) { arena.rows(loss_chunk_rows(spec_, labels_), spec_.vocab); });
  }
  std::int64_t loss_without_logits() const {
    const std::int64_t chunk = loss_chunk_rows(spec_, labels_);
    return measured([&](Arena& arena) {
      arena.take<float>(chunk);
      arena.rows(chunk, spec_.hidden);
      arena.rows(chunk, spec_.hidden);
      arena.take<float>(chunk);
    });
  }
  // The most that one layer's forward, again in the backward, or its backward takes.
  std::int64_t layer() const {
    return measured([&](Arena& arena) {
      if (spec_.sandwich_norms) {  // where a layer is computed again, its last norm needs a place for its output
        const Arena::Scope scope(arena);
        arena.rows(tokens_, spec_.hidden);
      }
      for (std::int64_t layer = lowest_; layer < spec_.layers; ++layer) {
        for (int p = 0; p < kProjections; ++p) forward(arena, layer, static_cast<Projection>(p));
        {
          const Arena::Scope scope(arena);
          arena.rows(tokens_, spec_.ffn);
          arena.rows(tokens_, spec_.hidden);
          for (const Projection p : {Projection::down, Projection::gate, Projection::up}) backward(arena, layer, p);
        }
        const Arena::Scope scope(arena);
        arena.rows(tokens_, spec_.hidden);
        for (const std::int64_t width : {spec_.q_size(), spec_.q_size(), spec_.kv_size(), spec_.kv_size()}) arena.rows(tokens_, width);
        for (const Projection p : {Projection::o, Projection::q, Projection::k, Projection::v}) backward(arena, layer, p);
      }
    });
  }
  // Before a step: DoRA's norms.
  std::int64_t norms() const {
    if (adapter_ == nullptr || !adapter_->config().dora) return 0;
    return measured([&](Arena& arena) {
      for (int p = 0; p < kProjections; ++p) {
        const auto projection = static_cast<Projection>(p);
        if (adapter_->widest_rank(projection) == 0) continue;
        const Arena::Scope scope(arena);
        const Matrix weight{Dtype::f32, spec_.rows(projection), spec_.columns(projection), nullptr, {}};
        arena.rows(dora_chunk_rows(weight), weight.cols);
      }
    });
  }

 private:
  template <class Body>
  static std::int64_t measured(Body body) {
    Arena arena(Arena::Measuring::on);
    body(arena);
    return arena.peak_bytes();
  }
  const LoraPair* pair(std::int64_t layer, Projection p) const { return adapter_ == nullptr ? nullptr : adapter_->pair(layer, p); }

  void forward(Arena& arena, std::int64_t layer, Projection p) const {
    const Arena::Scope scope(arena);
    if (pair(layer, p) != nullptr && dropout_) arena.rows(tokens_, spec_.columns(p));
  }
  void backward(Arena& arena, std::int64_t layer, Projection p) const {
    const Arena::Scope scope(arena);
    const LoraPair* at = pair(layer, p);
    if (at == nullptr) return;
    if (adapter_->config().dora) arena.rows(tokens_, at->outputs);
    arena.rows(tokens_, at->rank);
    if (dropout_) arena.rows(tokens_, at->inputs);
  }

  const ModelSpec& spec_;
  const LoraAdapter* adapter_;
  std::int64_t tokens_, labels_, lowest_;
  bool dropout_;
};

// Scales of so many blocks, quantized themselves.
std::int64_t nested_bytes(std::int64_t blocks) { return blocks + (blocks + 255) / 256 * kFloat; }

std::string table_of(const TrainingBytes& parts) {
  return text("weights ", parts.weights, "\nadapter ", parts.adapter, "\ngradients ", parts.gradients, "\noptimizer ", parts.optimizer, "\ncheckpoints ",
              parts.checkpoints, "\nactivations ", parts.activations, "\nlive ", parts.live, "\nlogits ", parts.logits, "\ntotal ", parts.total(), "\n");
}

}  // namespace

TrainingPlan plan_training(const ModelSpec& spec, std::int64_t weight_bytes, const TrainerOptions& options, std::int64_t tokens) {
  return plan_training(spec, weight_bytes, options, tokens, tokens - 1);
}

TrainingPlan plan_training(const ModelSpec& spec, std::int64_t weight_bytes, const TrainerOptions& options, std::int64_t tokens, std::int64_t labels) {
  check_trainer_options(options);
  require(tokens >= 1 && tokens <= INT32_MAX, "a micro-batch of ", tokens, " tokens cannot be planned; use 1 to 2147483647");
  std::optional<LoraAdapter> adapter;
  if (options.lora) adapter = LoraAdapter::layout_of(spec, *options.lora);
  const std::int64_t values = adapter ? adapter->size() : FullParameters::size_of(spec);
  const MicroStepScratch scratch(spec, adapter ? &*adapter : nullptr, tokens, labels);

  TrainingPlan plan;
  plan.tokens = tokens;
  plan.budget_bytes = options.memory_budget;
  TrainingBytes& parts = plan.parts;
  parts.weights = weight_bytes;
  parts.adapter = adapter ? adapter->bytes() : values * kFloat;
  parts.gradients = values * kFloat;
  parts.optimizer = optimizer_bytes(options, tensors_of(spec, adapter));
  parts.checkpoints = scratch.checkpoints();
  // The loss and a layer's work come one after the other, in the same memory.
  const std::int64_t layer = scratch.layer(), loss = labels > 0 ? scratch.loss_without_logits() + scratch.logits() : 0;
  parts.logits = loss >= layer && labels > 0 ? scratch.logits() : 0;
  parts.live = std::max(layer, loss) - parts.logits;

  const std::int64_t one = scratch.one_layer(), without = parts.total();
  const std::int64_t all = scratch.trained_layers();
  if (options.memory_budget == 0) {
    const std::int64_t unaligned = activation_bytes(spec, tokens, adapter ? &*adapter : nullptr);
    plan.kept_layers = layers_kept(options.gradient_checkpointing ? kActivationBudget : kKeepAll, unaligned, all);
  } else {
    const std::int64_t least = options.gradient_checkpointing ? 1 : all;
    require(Code::oom, without + least * one <= options.memory_budget, "micro-batches of ", tokens, " tokens need ", without + least * one, " bytes (weights ",
            parts.weights, ", adapter ", parts.adapter, ", gradients ", parts.gradients, ", optimizer ", parts.optimizer, ", checkpoints ", parts.checkpoints,
            ", activations ", least * one, ", live ", parts.live, ", logits ", parts.logits, "), but the memory budget is ", options.memory_budget,
            "; use shorter micro-batches, a smaller adapter", options.gradient_checkpointing ? "" : ", gradient checkpointing", " or a larger budget");
    plan.kept_layers = std::min(all, (options.memory_budget - without) / one);
  }
  plan.recomputed_layers = all - plan.kept_layers;
  parts.activations = plan.kept_layers * one;
  const std::int64_t step = parts.checkpoints + parts.activations + parts.live + parts.logits;
  parts.live += std::max<std::int64_t>(0, scratch.norms() - step);  // only beside very small batches
  plan.device_bytes = parts.total();
  plan.table = table_of(parts);
  return plan;
}

std::int64_t arena_bytes(const TrainingPlan& plan) { return plan.parts.checkpoints + plan.parts.activations + plan.parts.live + plan.parts.logits; }

std::int64_t loaded_weight_bytes(const ModelSpec& spec, const HfFolder& folder, QuantizeOnLoad quantize) {
  check_tensors(spec, folder);
  DecoderWeights slots;
  std::int64_t bytes = 0;
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    const std::int64_t count = element_count(parameter.shape), blocks = nf4_blocks(count);
    const TensorView& tensor = folder.at(parameter.name);
    const ParameterSlot slot = find_slot(spec, slots, parameter.name);
    const std::int64_t nested = nested_bytes(blocks);
    if (slot.vector != nullptr) {
      bytes += count * kFloat;
    } else if (const auto stored = find_nf4(folder, parameter.name)) {
      bytes += (count + 1) / 2 + (stored->double_quant ? nested : blocks * kFloat);
    } else if (slot.block_linear && quantize == QuantizeOnLoad::nf4) {
      bytes += nf4_bytes(count) + nested;
    } else {
      bytes += tensor.bytes;
    }
  }
  return bytes;
}

std::int64_t loaded_weight_bytes(const ModelSpec& spec, std::int64_t stored_bytes, QuantizeOnLoad quantize) {
  if (quantize == QuantizeOnLoad::none) return stored_bytes;
  const std::int64_t element = stored_bytes / parameter_count(spec) >= kFloat ? kFloat : 2;
  DecoderWeights slots;
  std::int64_t bytes = 0;
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    const std::int64_t count = element_count(parameter.shape), blocks = nf4_blocks(count);
    const ParameterSlot slot = find_slot(spec, slots, parameter.name);
    if (slot.vector != nullptr) bytes += count * kFloat;
    else bytes += slot.block_linear ? nf4_bytes(count) + nested_bytes(blocks) : count * element;
  }
  return bytes;
}

}  // namespace engine
