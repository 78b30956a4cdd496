#include "model/backward.h"

#include "ops/attention.h"
#include "ops/glu.h"
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
  project_backward(pass, layer, Projection::down, a.gated, a.of(Projection::down), dout, dgated, false, gradients);              // [T, ffn]
  glu_backward(pass.ex, spec.activation, a.gate, a.up, dgated, a.gate, a.up);                               // now dgate and dup, [T, ffn]
  project_backward(pass, layer, Projection::gate, a.mlp_in, a.of(Projection::gate), a.gate, dmlp_in, false, gradients);          // [T, hidden]
  project_backward(pass, layer, Projection::up, a.mlp_in, a.of(Projection::up), a.up, dmlp_in, true, gradients);               // [T, hidden]
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
  project_backward(pass, layer, Projection::o, a.attention, a.of(Projection::o), dout, dattention, false, gradients);         // [T, heads·head_dim]
  attention_backward(ex, attention_shape(spec, layer), a.q, a.k, a.v, offsets, a.attention, a.lse, dattention, dq, dk, dv);
  const Rotation rotation = pass.ropes.at(pass.layer_spec(layer).rope);
  rope_backward(ex, *rotation.table, rotation.positions, spec.head_dim, dq);
  rope_backward(ex, *rotation.table, rotation.positions, spec.head_dim, dk);
  if (spec.qk_norm) {
    norm_backward(pass, head_norm(spec, w.q_norm), a.q_raw, a.q_rstd, dq, dq, false, gradients);
    norm_backward(pass, head_norm(spec, w.k_norm), a.k_raw, a.k_rstd, dk, dk, false, gradients);
  }
  project_backward(pass, layer, Projection::q, a.attention_in, a.of(Projection::q), dq, din, false, gradients, input);        // [T, hidden]
  project_backward(pass, layer, Projection::k, a.attention_in, a.of(Projection::k), dk, din, true, gradients, input);         // [T, hidden]
  project_backward(pass, layer, Projection::v, a.attention_in, a.of(Projection::v), dv, din, true, gradients, input);         // [T, hidden]
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
