#include "model/adapted_linear.h"

#include <algorithm>

#include "core/error.h"
#include "ops/dora.h"
#include "ops/elementwise.h"
#include "ops/gemm.h"
#include "ops/linear.h"
#include "ops/reduce.h"

namespace engine {
namespace {

Rows row_range(Rows x, std::int64_t first, std::int64_t count) { return {x.row(first), count, x.cols, x.stride}; }
ConstRows row_range(ConstRows x, std::int64_t first, std::int64_t count) { return {x.row(first), count, x.cols, x.stride}; }

ConstRows a_of(const LoraAdapter& adapter, const LoraPair& at) { return {adapter.data() + at.a, at.rank, at.inputs}; }
ConstRows b_of(const LoraAdapter& adapter, const LoraPair& at) { return {adapter.data() + at.b, at.outputs, at.rank}; }

DoraFactor factor_of(const LoraAdapter& adapter, const LoraPair& at) {
  require(Code::internal, adapter.bound(), "a DoRA adapter is used without the norms of its base");
  return {adapter.data() + at.magnitude, adapter.inverse_norms() + at.norm};
}

const LoraPair* adapted(const LoraSegment& segment, std::int64_t layer, Projection projection) {
  return segment.adapter == nullptr || segment.count == 0 ? nullptr : segment.adapter->pair(layer, projection);
}

bool decomposed(const Pass& pass, std::int64_t layer, Projection projection) {
  return std::ranges::any_of(pass.adapters, [&](const LoraSegment& segment) {
    return adapted(segment, layer, projection) != nullptr && segment.adapter->config().dora;
  });
}

enum class Drop : std::uint8_t { inputs, nothing };

// dropout(x) in the arena; x itself where nothing is dropped.
ConstRows dropped(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, Drop drop = Drop::inputs) {
  if (drop == Drop::nothing || pass.dropout == 0) return x;
  const Rows kept = pass.arena.rows(x.rows, x.cols);
  dropout(pass.ex, pass.dropout_stream(layer, projection), pass.dropout, x, kept);
  return kept;
}

// dropout(x)·Aᵀ of one segment's tokens, [n, rank].
Rows shrink(const Pass& pass, std::int64_t layer, Projection projection, const LoraSegment& segment, const LoraPair& at, ConstRows x, Drop drop, float* keep) {
  const Rows low(keep != nullptr ? keep : pass.arena.take<float>(segment.count * at.rank), segment.count, at.rank);
  const Arena::Scope scope(pass.arena);
  gemm_nt(pass.ex, dropped(pass, layer, projection, row_range(x, segment.first, segment.count), drop), a_of(*segment.adapter, at), low);
  return low;
}

// y (+)= x·Wᵀ + bias + s · dropout(x)·Aᵀ·Bᵀ
void low_rank_project(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, Drop drop, const float* bias, Rows y, float* keep,
                      bool accumulate) {
  const Matrix& weight = pass.layer(layer)[projection].weight;
  const Arena::Scope scope(pass.arena);
  if (pass.adapters.size() == 1 && adapted(pass.adapters[0], layer, projection) != nullptr) {
    const LoraSegment& all = pass.adapters[0];
    const LoraPair& at = *adapted(all, layer, projection);
    const LowRank term{shrink(pass, layer, projection, all, at, x, drop, keep), b_of(*all.adapter, at), at.scale};
    linear(pass.ex, x, weight, bias, y, accumulate, &term);                                                  // [T, outputs]
    return;
  }
  // One product over the base for all rows reads its weights once, whatever adapters they have.
  linear(pass.ex, x, weight, bias, y, accumulate);                                                           // [T, outputs]
  for (const LoraSegment& segment : pass.adapters)
    if (const LoraPair* at = adapted(segment, layer, projection)) {
      const Rows low = shrink(pass, layer, projection, segment, *at, x, drop, keep);
      gemm_nt(pass.ex, low, b_of(*segment.adapter, *at), row_range(y, segment.first, segment.count), at->scale, true);  // [n, outputs]
    }
}

// y (+)= x·Wᵀ − x̃·Wᵀ + c ⊙ x̃·Vᵀ + bias with x̃ = dropout(x). Without dropout (always so where segments differ) the first two cancel.
void dora_project(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, Rows y, const AdapterActivations& keep, bool accumulate) {
  const LinearWeights& w = pass.layer(layer)[projection];
  const Arena::Scope scope(pass.arena);
  const Rows directed(keep.directed != nullptr ? keep.directed : pass.arena.take<float>(y.rows * y.cols), y.rows, y.cols);
  if (pass.dropout == 0) {
    low_rank_project(pass, layer, projection, x, Drop::nothing, nullptr, directed, keep.shrunk, false);      // [T, outputs]
    for (const LoraSegment& segment : pass.adapters) {
      const LoraPair* at = adapted(segment, layer, projection);
      const bool scaled = at != nullptr && segment.adapter->config().dora;
      dora_scale(pass.ex, row_range(ConstRows(directed), segment.first, segment.count), scaled ? factor_of(*segment.adapter, *at) : DoraFactor{}, w.bias,
                 row_range(y, segment.first, segment.count), accumulate);                                    // [n, outputs]
    }
    return;
  }
  const LoraAdapter& adapter = *pass.adapters.front().adapter;
  const Rows kept = pass.arena.rows(x.rows, x.cols);
  dropout(pass.ex, pass.dropout_stream(layer, projection), pass.dropout, x, kept);
  low_rank_project(pass, layer, projection, kept, Drop::nothing, nullptr, directed, keep.shrunk, false);     // [T, outputs]
  scale(pass.ex, kept, -1.0f, kept);
  add_scaled(pass.ex, x, 1.0f, kept);                                                                        // x − x̃
  linear(pass.ex, kept, w.weight, w.bias, y, accumulate);                                                    // [T, outputs]
  dora_scale(pass.ex, directed, factor_of(adapter, *adapter.pair(layer, projection)), nullptr, y, true);     // [T, outputs]
}

// dB += s·dyᵀ·(x̃·Aᵀ)   dA += dlowᵀ·x̃   with dlow = s·dy·B [T, rank], returned, and x̃ = dropout(x).
Rows low_rank_backward(const Pass& pass, std::int64_t layer, Projection projection, const LoraPair& at, ConstRows x, const float* shrunk, ConstRows dy,
                       const Gradients& gradients) {
  const LoraAdapter& adapter = *pass.adapters.front().adapter;
  const Rows da(gradients.lora + at.a, at.rank, at.inputs), db(gradients.lora + at.b, at.outputs, at.rank);
  gemm_tn(pass.ex, dy, ConstRows(shrunk, x.rows, at.rank), db, at.scale, true);                              // [outputs, rank]
  const Rows dlow = pass.arena.rows(x.rows, at.rank);
  gemm_nn(pass.ex, dy, b_of(adapter, at), dlow, at.scale);                                                   // [T, rank]
  const Arena::Scope scope(pass.arena);
  gemm_tn(pass.ex, dlow, dropped(pass, layer, projection, x), da, 1.0f, true);                               // [rank, inputs]
  return dlow;
}

// dx (+)= dy·W + mask(dlow·A)
void low_rank_input_backward(const Pass& pass, std::int64_t layer, Projection projection, const LoraPair& at, ConstRows dy, ConstRows dlow, Rows dx,
                             bool accumulate) {
  const Matrix& weight = pass.layer(layer)[projection].weight;
  const ConstRows a = a_of(*pass.adapters.front().adapter, at);
  if (pass.dropout == 0) {
    const LowRank term{dlow, a, 1.0f};
    linear_backward_input(pass.ex, dy, weight, dx, accumulate, &term);                                       // [T, inputs]
    return;
  }
  linear_backward_input(pass.ex, dy, weight, dx, accumulate);                                                // [T, inputs]
  const Arena::Scope scope(pass.arena);
  const Rows masked = pass.arena.rows(dx.rows, at.inputs);
  gemm_nn(pass.ex, dlow, a, masked);                                                                         // [T, inputs]
  dropout(pass.ex, pass.dropout_stream(layer, projection), pass.dropout, masked, masked);
  add_scaled(pass.ex, masked, 1.0f, dx);
}

// With g = c ⊙ dy, the gradient of x̃·Vᵀ:   dm = Σ dy ⊙ directed / ‖V‖,   dA and dB as LoRA's from g,   dx (+)= dy·W + mask((g − dy)·W + dlow·A).
void dora_backward(const Pass& pass, std::int64_t layer, Projection projection, const LoraPair& at, ConstRows x, const AdapterActivations& kept, ConstRows dy,
                   Rows dx, bool accumulate, const Gradients& gradients, InputGradient input) {
  const LoraAdapter& adapter = *pass.adapters.front().adapter;
  const DoraFactor factor = factor_of(adapter, at);
  dora_magnitude_backward(pass.ex, dy, ConstRows(kept.directed, x.rows, at.outputs), factor.inverse, gradients.lora + at.magnitude);
  const Rows g = pass.arena.rows(dy.rows, dy.cols);
  dora_scale(pass.ex, dy, factor, nullptr, g);                                                               // [T, outputs]
  const Rows dlow = low_rank_backward(pass, layer, projection, at, x, kept.shrunk, g, gradients);            // [T, rank]
  if (input == InputGradient::unused) return;
  if (pass.dropout == 0) return low_rank_input_backward(pass, layer, projection, at, g, dlow, dx, accumulate);
  const Matrix& weight = pass.layer(layer)[projection].weight;
  linear_backward_input(pass.ex, dy, weight, dx, accumulate);                                                // [T, inputs]
  add_scaled(pass.ex, dy, -1.0f, g);                                                                         // (c − 1) ⊙ dy
  const Rows masked = pass.arena.rows(dx.rows, at.inputs);
  const LowRank term{dlow, a_of(adapter, at), 1.0f};
  linear_backward_input(pass.ex, g, weight, masked, false, &term);                                           // [T, inputs]
  dropout(pass.ex, pass.dropout_stream(layer, projection), pass.dropout, masked, masked);
  add_scaled(pass.ex, masked, 1.0f, dx);
}

}  // namespace

void project(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, Rows y, const AdapterActivations& keep, bool accumulate) {
  if (decomposed(pass, layer, projection)) return dora_project(pass, layer, projection, x, y, keep, accumulate);
  low_rank_project(pass, layer, projection, x, Drop::inputs, pass.layer(layer)[projection].bias, y, keep.shrunk, accumulate);
}

void project_activations(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, const AdapterActivations& keep) {
  const LoraSegment& all = pass.adapters.front();
  const LoraPair* at = adapted(all, layer, projection);
  if (at == nullptr) return;
  const Arena::Scope scope(pass.arena);
  if (!all.adapter->config().dora) {
    shrink(pass, layer, projection, all, *at, x, Drop::inputs, keep.shrunk);
    return;
  }
  low_rank_project(pass, layer, projection, dropped(pass, layer, projection, x), Drop::nothing, nullptr, Rows(keep.directed, x.rows, at->outputs), keep.shrunk, false);
}

void project_backward(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, const AdapterActivations& kept, ConstRows dy, Rows dx,
                      bool accumulate, const Gradients& gradients, InputGradient input) {
  const LinearWeights& w = pass.layer(layer)[projection];
  if (gradients.full != nullptr) {
    gemm_tn(pass.ex, dy, x, Rows(gradients.of(w.weight.data), w.weight.rows, w.weight.cols), 1.0f, true);    // [outputs, inputs]
    if (w.bias != nullptr) bias_gradient(pass.ex, dy, gradients.of(w.bias));
  }
  const LoraPair* at = gradients.lora != nullptr ? pass.adapters.front().adapter->pair(layer, projection) : nullptr;
  const Arena::Scope scope(pass.arena);
  if (at == nullptr) {
    if (input == InputGradient::wanted) linear_backward_input(pass.ex, dy, w.weight, dx, accumulate);        // [T, inputs]
  } else if (pass.adapters.front().adapter->config().dora) {
    dora_backward(pass, layer, projection, *at, x, kept, dy, dx, accumulate, gradients, input);
  } else {
    const Rows dlow = low_rank_backward(pass, layer, projection, *at, x, kept.shrunk, dy, gradients);        // [T, rank]
    if (input == InputGradient::wanted) low_rank_input_backward(pass, layer, projection, *at, dy, dlow, dx, accumulate);
  }
}

}  // namespace engine
