#include "model/backward.h"

#include <cstring>

#include "core/error.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/gemm.h"
#include "ops/glu.h"
#include "ops/linear.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"

namespace engine {
namespace {

RmsNorm token_norm(const ModelSpec& spec, const float* weight) { return {weight, spec.hidden, spec.norm_eps, spec.norm_offset}; }
RmsNorm head_norm(const ModelSpec& spec, const float* weight) { return {weight, spec.head_dim, spec.norm_eps, spec.norm_offset}; }

// dx (+)= the norm's gradient; the weight's gradient in full-parameter mode. dx may be dy.
void norm_backward(const Pass& pass, const RmsNorm& norm, ConstRows x, const float* rstd, ConstRows dy, Rows dx, bool accumulate,
                   const Gradients& gradients) {
  if (gradients.full != nullptr) rmsnorm_backward_weight(pass.ex, norm, x, rstd, dy, gradients.of(norm.weight));
  rmsnorm_backward(pass.ex, norm, x, rstd, dy, dx, accumulate);
}

// The LoRA part of project's gradient:  dB += s·dyᵀ·(x̃·Aᵀ)   dA += dlowᵀ·x̃   with dlow = s·dy·B [T, rank], returned, and x̃ = dropout(x).
Rows lora_weights_backward(const Pass& pass, std::int64_t layer, Projection projection, const LoraPair& at, ConstRows x, const float* shrunk, ConstRows dy,
                           const Gradients& gradients) {
  const LoraAdapter& adapter = *pass.adapters.front().adapter;
  const std::int64_t rank = adapter.config().rank;
  const Rows da(gradients.lora + at.a, rank, at.inputs), db(gradients.lora + at.b, at.outputs, rank);
  gemm_tn(pass.ex, dy, ConstRows(shrunk, x.rows, rank), db, adapter.scale(), true);                          // [outputs, rank]
  const Rows dlow = pass.arena.rows(x.rows, rank);
  gemm_nn(pass.ex, dy, ConstRows(adapter.data() + at.b, at.outputs, rank), dlow, adapter.scale());           // [T, rank]
  const Arena::Scope scope(pass.arena);
  ConstRows kept = x;
  if (pass.dropout > 0) {
    const Rows masked = pass.arena.rows(x.rows, at.inputs);
    dropout(pass.ex, pass.dropout_stream(layer, projection), pass.dropout, x, masked);
    kept = masked;
  }
  gemm_tn(pass.ex, dlow, kept, da, 1.0f, true);                                                              // [rank, inputs]
  return dlow;
}

// dx (+)= dy·W + mask(dlow·A)
void lora_input_backward(const Pass& pass, std::int64_t layer, Projection projection, const LoraPair& at, ConstRows dy, ConstRows dlow, Rows dx, bool accumulate) {
  const Matrix& weight = pass.layer(layer)[projection].weight;
  const ConstRows a(pass.adapters.front().adapter->data() + at.a, dlow.cols, at.inputs);
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

// The gradient of project: weights' and adapters' parts into `gradients`, dx (+)= the input's.
void project_backward(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, const LayerActivations& a, ConstRows dy, Rows dx,
                      bool accumulate, const Gradients& gradients, InputGradient input = InputGradient::wanted) {
  const LinearWeights& w = pass.layer(layer)[projection];
  if (gradients.full != nullptr) {
    gemm_tn(pass.ex, dy, x, Rows(gradients.of(w.weight.data), w.weight.rows, w.weight.cols), 1.0f, true);    // [outputs, inputs]
    if (w.bias != nullptr) bias_gradient(pass.ex, dy, gradients.of(w.bias));
  }
  const LoraPair* at = gradients.lora != nullptr ? pass.adapters.front().adapter->pair(layer, projection) : nullptr;
  if (at != nullptr) {
    const Arena::Scope scope(pass.arena);
    const Rows dlow = lora_weights_backward(pass, layer, projection, *at, x, a.shrunk[static_cast<std::size_t>(projection)], dy, gradients);
    if (input == InputGradient::wanted) lora_input_backward(pass, layer, projection, *at, dy, dlow, dx, accumulate);
  } else if (input == InputGradient::wanted) {
    linear_backward_input(pass.ex, dy, w.weight, dx, accumulate);                                            // [T, inputs]
  }
}

// d(middle) from d(layer output), in place.
void mlp_backward(const Pass& pass, std::int64_t layer, LayerActivations& a, Rows dx, const Gradients& gradients) {
  const Arena::Scope scope(pass.arena);
  const ModelSpec& spec = pass.spec;
  const LayerWeights& w = pass.layer(layer);
  const std::int64_t tokens = dx.rows;
  const Rows dgated = pass.arena.rows(tokens, spec.ffn), dmlp_in = pass.arena.rows(tokens, spec.hidden);
  ConstRows dout = dx;
  if (spec.sandwich_norms) {
    norm_backward(pass, token_norm(spec, w.mlp_output_norm), a.mlp_out, a.mlp_out_rstd, dx, dmlp_in, false, gradients);
    dout = dmlp_in;                                                                                         // [T, hidden]
  }
  project_backward(pass, layer, Projection::down, a.gated, a, dout, dgated, false, gradients);              // [T, ffn]
  glu_backward(pass.ex, spec.activation, a.gate, a.up, dgated, a.gate, a.up);                               // now dgate and dup, [T, ffn]
  project_backward(pass, layer, Projection::gate, a.mlp_in, a, a.gate, dmlp_in, false, gradients);          // [T, hidden]
  project_backward(pass, layer, Projection::up, a.mlp_in, a, a.up, dmlp_in, true, gradients);               // [T, hidden]
  norm_backward(pass, token_norm(spec, w.mlp_norm), a.middle, a.mlp_rstd, dmlp_in, dx, true, gradients);    // [T, hidden]
}

// d(x) from d(middle), in place.
void attention_part_backward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, std::span<const std::int64_t> offsets, Rows dx,
                             const Gradients& gradients, InputGradient input) {
  const Arena::Scope scope(pass.arena);
  const Exec& ex = pass.ex;
  const ModelSpec& spec = pass.spec;
  const LayerWeights& w = pass.layer(layer);
  const std::int64_t tokens = dx.rows;
  const Rows din = pass.arena.rows(tokens, spec.hidden), dattention = pass.arena.rows(tokens, spec.q_size());
  const Rows dq = pass.arena.rows(tokens, spec.q_size()), dk = pass.arena.rows(tokens, spec.kv_size()), dv = pass.arena.rows(tokens, spec.kv_size());
  ConstRows dout = dx;
  if (spec.sandwich_norms) {
    norm_backward(pass, token_norm(spec, w.attention_norm), a.attention_out, a.attention_rstd, dx, din, false, gradients);
    dout = din;                                                                                             // [T, hidden]
  }
  project_backward(pass, layer, Projection::o, a.attention, a, dout, dattention, false, gradients);         // [T, heads·head_dim]
  attention_backward(ex, attention_shape(spec, layer), a.q, a.k, a.v, offsets, a.attention, a.lse, dattention, dq, dk, dv);
  const Rotation rotation = pass.ropes.at(pass.layer_spec(layer).rope);
  rope_backward(ex, *rotation.table, rotation.positions, spec.head_dim, dq);
  rope_backward(ex, *rotation.table, rotation.positions, spec.head_dim, dk);
  if (spec.qk_norm) {
    norm_backward(pass, head_norm(spec, w.q_norm), a.q_raw, a.q_rstd, dq, dq, false, gradients);
    norm_backward(pass, head_norm(spec, w.k_norm), a.k_raw, a.k_rstd, dk, dk, false, gradients);
  }
  project_backward(pass, layer, Projection::q, a.attention_in, a, dq, din, false, gradients, input);        // [T, hidden]
  project_backward(pass, layer, Projection::k, a.attention_in, a, dk, din, true, gradients, input);         // [T, hidden]
  project_backward(pass, layer, Projection::v, a.attention_in, a, dv, din, true, gradients, input);         // [T, hidden]
  if (input == InputGradient::wanted)
    norm_backward(pass, token_norm(spec, w.input_norm), x, a.input_rstd, din, dx, true, gradients);         // [T, hidden]
}

}  // namespace

void layer_backward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, std::span<const std::int64_t> offsets, Rows dx,
                    const Gradients& gradients, InputGradient input) {
  mlp_backward(pass, layer, a, dx, gradients);
  attention_part_backward(pass, layer, x, a, offsets, dx, gradients, input);
}

}  // namespace engine
