#include "train/micro_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rng.h"
#include "ops/embed.h"
#include "train/loss.h"

namespace engine {
namespace {

void add_neftune_noise(const LabelledBatch& batch, const MicroStepOptions& options, Rows x) {
  const Philox noise{options.neftune_key, 0};
  for (std::size_t row = 0; row + 1 < batch.offsets.size(); ++row) {
    const std::int64_t first = batch.offsets[row], length = batch.offsets[row + 1] - first;
    const float magnitude = options.neftune_alpha / std::sqrt(static_cast<float>(length * x.cols));
    for (std::int64_t i = first * x.cols; i < (first + length) * x.cols; ++i)
      x.data[i] += magnitude * (2.0f * noise.uniform(static_cast<std::uint64_t>(i)) - 1.0f);
  }
}

}  // namespace

std::int64_t lowest_trained_layer(const LoraAdapter* adapter) {
  return adapter == nullptr || adapter->embedding_offset() >= 0 ? 0 : adapter->first_layer();
}

std::int64_t layers_kept(std::int64_t budget, std::int64_t layer_bytes, std::int64_t trained_layers) {
  return std::clamp<std::int64_t>(budget / layer_bytes, 1, trained_layers);
}

double run_micro_step(const Pass& pass, const LabelledBatch& batch, float weight, const MicroStepOptions& options, const Gradients& gradients) {
  const ModelSpec& spec = pass.spec;
  const std::int64_t tokens = batch.tokens(), layers = spec.layers;
  const LoraAdapter* adapter = gradients.lora != nullptr ? pass.adapters.front().adapter : nullptr;
  const std::int64_t lowest = lowest_trained_layer(adapter);
  prepare_packed_ropes(pass, batch.packed());
  PackedAttention attention(batch.offsets);

  // Rows stay where they are: the vectors below hold views only, a few dozen bytes for each layer.
  std::vector<Rows> x(static_cast<std::size_t>(layers) + 1);  // x[l] is layer l's input; below the lowest trained layer two take turns
  for (std::size_t layer = 0; layer < x.size(); ++layer)
    x[layer] = layer >= 2 && static_cast<std::int64_t>(layer) < lowest ? x[layer - 2] : pass.arena.rows(tokens, spec.hidden);
  // The last layers keep theirs; the first of them lends its memory to those before.
  const std::int64_t keeping = layers_kept(options.activation_budget, activation_bytes(spec, tokens, adapter), layers - lowest);
  std::vector<LayerActivations> kept(static_cast<std::size_t>(keeping));
  for (LayerActivations& a : kept) a = take_activations(pass.arena, spec, tokens, adapter, Keep::for_backward);
  const auto keeps = [&](std::int64_t layer) { return layer >= layers - keeping; };
  const auto activations = [&](std::int64_t layer) -> LayerActivations& { return kept[keeps(layer) ? static_cast<std::size_t>(layer - (layers - keeping)) : 0]; };
  const auto input = [&](std::int64_t layer) { return x[static_cast<std::size_t>(layer)]; };

  embed_tokens(pass, batch.ids, input(0));                                                              // [T, hidden]
  if (options.neftune_alpha > 0) add_neftune_noise(batch, options, input(0));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    check_cancelled(pass.cancel);
    layer_forward(pass, layer, input(layer), activations(layer), attention, input(layer + 1));          // [T, hidden]
  }

  const Rows dx = pass.arena.rows(tokens, spec.hidden);
  const double loss = head_loss_backward(pass, input(layers), batch, weight, dx, gradients);            // dx [T, hidden]

  for (std::int64_t layer = layers - 1; layer >= lowest; --layer) {
    check_cancelled(pass.cancel);
    if (!keeps(layer)) layer_forward(pass, layer, input(layer), activations(layer), attention, {});
    const bool last = layer == lowest && gradients.embedding == nullptr;
    layer_backward(pass, layer, input(layer), activations(layer), batch.offsets, dx, gradients, last ? InputGradient::unused : InputGradient::wanted);
  }
  if (gradients.embedding != nullptr)
    embed_backward(pass.ex, batch.ids, dx, embedding_scale(spec, pass.ex.compute), Rows(gradients.embedding, spec.vocab, spec.hidden));
  return loss;
}

double run_evaluation(const Pass& pass, const LabelledBatch& batch, float weight) {
  prepare_packed_ropes(pass, batch.packed());
  PackedAttention attention(batch.offsets);
  const Rows hidden = hidden_states(pass, batch.ids, attention);                                        // [T, hidden]
  return head_loss(pass, hidden, batch, weight);
}

}  // namespace engine
