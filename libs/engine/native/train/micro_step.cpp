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

double run_micro_step(const Pass& pass, const LabelledBatch& batch, float weight, const MicroStepOptions& options, const Gradients& gradients) {
  const ModelSpec& spec = pass.spec;
  const std::int64_t tokens = batch.tokens(), layers = spec.layers;
  const LoraAdapter* adapter = gradients.lora != nullptr ? pass.adapters.front().adapter : nullptr;
  prepare_packed_ropes(pass, batch.packed());
  PackedAttention attention(batch.offsets);

  // Rows stay where they are: the vectors below hold views only, a few dozen bytes for each layer.
  std::vector<Rows> x(static_cast<std::size_t>(layers) + 1);  // x[l] is layer l's input
  for (Rows& rows : x) rows = pass.arena.rows(tokens, spec.hidden);
  const std::int64_t affordable = options.activation_budget / activation_bytes(spec, tokens, adapter);
  const std::int64_t keeping = std::clamp<std::int64_t>(affordable, 1, layers);  // the last ones; the first of them lends its memory to those before
  std::vector<LayerActivations> kept(static_cast<std::size_t>(keeping));
  for (LayerActivations& a : kept) a = take_activations(pass.arena, spec, tokens, adapter, Keep::for_backward);
  const auto keeps = [&](std::int64_t layer) { return layer >= layers - keeping; };
  const auto activations = [&](std::int64_t layer) -> LayerActivations& { return kept[keeps(layer) ? static_cast<std::size_t>(layer - (layers - keeping)) : 0]; };
  const auto input = [&](std::int64_t layer) { return x[static_cast<std::size_t>(layer)]; };

  const float scale = embedding_scale(spec, pass.ex.compute);
  embed_forward(pass.ex, pass.weights.embedding, batch.ids, scale, input(0));                           // [T, hidden]
  if (options.neftune_alpha > 0) add_neftune_noise(batch, options, input(0));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    check_cancelled(pass.cancel);
    layer_forward(pass, layer, input(layer), activations(layer), attention, input(layer + 1));          // [T, hidden]
  }

  const Rows dx = pass.arena.rows(tokens, spec.hidden);
  const double loss = head_loss_backward(pass, input(layers), batch, weight, dx, gradients);            // dx [T, hidden]

  for (std::int64_t layer = layers - 1; layer >= 0; --layer) {
    check_cancelled(pass.cancel);
    if (!keeps(layer)) layer_forward(pass, layer, input(layer), activations(layer), attention, {});
    const bool first = layer == 0 && gradients.full == nullptr;
    layer_backward(pass, layer, input(layer), activations(layer), batch.offsets, dx, gradients, first ? InputGradient::unused : InputGradient::wanted);
  }
  if (gradients.full != nullptr) embed_backward(pass.ex, batch.ids, dx, scale, Rows(gradients.of(pass.weights.embedding.data), spec.vocab, spec.hidden));
  return loss;
}

double run_evaluation(const Pass& pass, const LabelledBatch& batch, float weight) {
  prepare_packed_ropes(pass, batch.packed());
  PackedAttention attention(batch.offsets);
  const Rows hidden = hidden_states(pass, batch.ids, attention);                                        // [T, hidden]
  return head_loss(pass, hidden, batch, weight);
}

}  // namespace engine
