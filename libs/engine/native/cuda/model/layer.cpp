#include "cuda/model/layer.h"

#include "core/error.h"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/glu.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/qkv_post.h"
#include "cuda/ops/rmsnorm.h"

namespace engine::cuda {
namespace {

RmsNorm norm(const ModelSpec& spec, const float* weight) { return {weight, spec.norm_eps, spec.norm_offset}; }

const DeviceLayer& weights_of(const DevicePass& pass, std::int64_t layer) { return pass.weights.layers[static_cast<std::size_t>(layer)]; }

AttentionShape attention_shape(const ModelSpec& spec, std::int64_t layer) {
  return {spec.heads, spec.kv_heads, spec.head_dim, spec.attention_scale, spec.layer[static_cast<std::size_t>(layer)].window, spec.attention_softcap};
}

QkvShape qkv_shape(const ModelSpec& spec) { return {spec.heads, spec.kv_heads, spec.head_dim}; }

QkvPost qkv_post(const DevicePass& pass, std::int64_t layer) {
  const DeviceLayer& w = weights_of(pass, layer);
  const DeviceRotation& rotation = pass.rotations[static_cast<std::size_t>(pass.spec.layer[static_cast<std::size_t>(layer)].rope)];
  return {.bias = w.qkv_bias,
          .q_norm = w.q_norm,
          .k_norm = w.k_norm,
          .eps = pass.spec.norm_eps,
          .offset = pass.spec.norm_offset,
          .cos = rotation.cos,
          .sin = rotation.sin,
          .rotary_dim = rotation.rotary_dim,
          .positions = rotation.positions};
}

std::uint64_t dropout_stream(std::int64_t layer, Projection projection) {
  return static_cast<std::uint64_t>(layer * kProjections + static_cast<int>(projection));
}

// dropout(x) as this projection's adapter sees it, in the pass's masked buffer.
View<const bf16> masked_input(const DevicePass& pass, std::int64_t layer, Projection projection, View<const bf16> x) {
  const View<bf16> masked = pass.rows(pass.work.masked, x.cols);
  dropout(pass.dropout_seed, dropout_stream(layer, projection), pass.dropout, x, masked, false, pass.stream);
  return masked;
}

// The tail of x [T, inputs + tail]: dropout(x)·Aᵀ of every adapter of the group, in its slot. Kept for the backward.
void fill_tail(const DevicePass& pass, std::int64_t layer, Group group, View<bf16> x, View<const bf16> s, const LayerBuffers& buffers) {
  if (!pass.geometry.adapts(layer, group)) return;
  const GroupShape& shape = pass.geometry[group];
  const View<const bf16> input = x.columns(0, shape.inputs), a = s.row_range(shape.outputs, shape.tail).columns(0, shape.inputs);
  const View<bf16> low = pass.low(buffers, group);
  if (!pass.lows_kept && pass.dropout == 0) pass.gemm(GemmForm::nt, input, a, low, pass.stream);         // [T, tail]
  if (!pass.lows_kept && pass.dropout > 0) {
    fill(low, 0.0f, pass.stream);
    for (const GroupPart& part : shape.parts)
      if (pass.adapter.pair(layer, part.projection) != nullptr)
        pass.gemm(GemmForm::nt, masked_input(pass, layer, part.projection, input), a.row_range(part.first_slot, part.slot), low.columns(part.first_slot, part.slot), pass.stream);
  }
  copy_rows(low, x.columns(shape.inputs, shape.tail), pass.stream);
}

// y [T, outputs] = x·Wᵀ + b + the adapters' part, x [T, inputs + tail] whose tail is filled here.
void project(const DevicePass& pass, std::int64_t layer, Group group, View<bf16> x, const LayerBuffers& buffers, View<bf16> y) {
  const GroupShape& shape = pass.geometry[group];
  const View<const bf16> s = pass.stage.use(layer, group);
  fill_tail(pass, layer, group, x, s, buffers);
  const bf16* bias = weights_of(pass, layer).bias[static_cast<std::size_t>(group)];
  const std::int64_t summed = pass.geometry.adapts(layer, group) ? shape.stride() : shape.inputs;
  pass.gemm(GemmForm::nt, x.columns(0, summed), s.row_range(0, shape.outputs).columns(0, summed), y, pass.stream, 1.0f, 0.0f, bias);  // [T, outputs]
  if (pass.decode_ahead) pass.stage.prefetch(layer + 1, group);
}

// The tail of dy [T, outputs + tail]: dy·sB.
void fill_gradient_tail(const DevicePass& pass, std::int64_t layer, Group group, View<bf16> dy) {
  if (!pass.geometry.adapts(layer, group)) return;
  const GroupShape& shape = pass.geometry[group];
  const View<const bf16> s = pass.stage.use(layer, group);
  pass.gemm(GemmForm::nn, dy.columns(0, shape.outputs), s.row_range(0, shape.outputs).columns(shape.inputs, shape.tail), dy.columns(shape.outputs, shape.tail), pass.stream);
}

// dx [T, inputs]: the gradient of project's input, from dy with its tail filled.
void input_gradient(const DevicePass& pass, std::int64_t layer, Group group, View<const bf16> dy, View<bf16> dx) {
  const GroupShape& shape = pass.geometry[group];
  const View<const bf16> s = pass.stage.use(layer, group);
  const bool adapted = pass.geometry.adapts(layer, group);
  const std::int64_t summed = adapted && pass.dropout == 0 ? shape.rows() : shape.outputs;
  pass.gemm(GemmForm::nn, dy.columns(0, summed), s.row_range(0, summed).columns(0, shape.inputs), dx, pass.stream);  // [T, inputs]
  if (!adapted || pass.dropout == 0) return;
  const View<bf16> expanded = pass.rows(pass.work.masked, shape.inputs);
  for (const GroupPart& part : shape.parts) {
    if (pass.adapter.pair(layer, part.projection) == nullptr) continue;
    const std::int64_t first = shape.outputs + part.first_slot;
    pass.gemm(GemmForm::nn, dy.columns(first, part.slot), s.row_range(first, part.slot).columns(0, shape.inputs), expanded, pass.stream);
    dropout(pass.dropout_seed, dropout_stream(layer, part.projection), pass.dropout, expanded, dx, true, pass.stream);
  }
}

// dA and dB of every adapter of the group, from its input x [T, inputs] and dy [T, outputs + tail] with its tail filled, beside what follows: join before
// either is overwritten. With `norm_weight`, x is the norm's input, and the norm is computed again: cheaper than keeping it.
void adapter_gradients(const DevicePass& pass, std::int64_t layer, Group group, View<const bf16> x, const LayerBuffers& buffers, View<const bf16> dy,
                       const float* norm_weight = nullptr) {
  if (!pass.geometry.adapts(layer, group)) return;
  const GroupShape& shape = pass.geometry[group];
  const bool masked = pass.dropout > 0;  // the mask's memory is needed on the way too
  if (!masked) pass.beside.begin(pass.stream);
  const cudaStream_t stream = masked ? pass.stream : pass.beside.stream;
  Gemm& gemm = masked ? pass.gemm : pass.beside.gemm;
  if (norm_weight != nullptr) {
    const View<bf16> normed = pass.rows(pass.work.normed, shape.inputs);
    // rmsnorm_forward changes its x only when there is something to add.
    rmsnorm_forward(norm(pass.spec, norm_weight), {const_cast<bf16*>(x.data), x.rows, x.cols, x.stride}, {}, normed, nullptr, stream);
    x = normed;
  }
  const View<float> of_a(pass.work.adapter_sums, shape.tail, shape.inputs), of_b(of_a.row(shape.tail), shape.tail, shape.outputs);
  const View<const bf16> dlow = dy.columns(shape.outputs, shape.tail);
  gemm(GemmForm::tn, pass.low(buffers, group), dy.columns(0, shape.outputs), of_b, stream);              // [tail, outputs]
  if (!masked) gemm(GemmForm::tn, dlow, x, of_a, stream);                                                // [tail, inputs]
  std::vector<LoraGradient> gradients;
  for (const GroupPart& part : shape.parts) {
    const LoraPair* at = pass.adapter.pair(layer, part.projection);
    if (at == nullptr) continue;
    const std::int64_t first = part.first_slot;
    if (masked) gemm(GemmForm::tn, dlow.columns(first, part.slot), masked_input(pass, layer, part.projection, x), of_a.row_range(first, part.slot), stream);
    gradients.push_back({of_b.row_range(first, at->rank).columns(part.first_output, part.outputs), pass.gradients + at->b, true, at->scale});
    gradients.push_back({of_a.row_range(first, at->rank), pass.gradients + at->a, false, 1.0f});
  }
  lora_add_gradients(gradients, stream);
  if (!masked) pass.beside.end();
}

// The weights that the backward comes to next, once this layer's were used.
void decode_before(const DevicePass& pass, std::int64_t layer, Group group) {
  if (layer > pass.lowest) pass.stage.prefetch(layer - 1, group);
}

// d(middle) from d(layer output), in place.
void mlp_backward(const DevicePass& pass, std::int64_t layer, const LayerBuffers& a, View<bf16> dx) {
  const ModelSpec& spec = pass.spec;
  const GroupShape &down = pass.geometry[Group::down], &gate_up = pass.geometry[Group::gate_up];
  const DeviceLayer& w = weights_of(pass, layer);
  const View<bf16> dhidden = dx.columns(0, spec.hidden);
  View<bf16> dout = dx.columns(0, down.rows());                                                          // [T, hidden, tail]
  if (spec.sandwich_norms) {
    dout = pass.rows(pass.work.dsub, down.rows(), spec.hidden + pass.geometry.tail(Group::o, Group::down));
    rmsnorm_backward(norm(spec, w.mlp_output_norm), pass.rows(a.mlp_out, spec.hidden), a.mlp_out_rstd, dhidden, dout.columns(0, spec.hidden), false, pass.stream);
  }
  const View<bf16> gated = pass.rows(pass.work.gated, down.stride()), gate_up_rows = pass.rows(a.gate_up, gate_up.rows());
  fill_gradient_tail(pass, layer, Group::down, dout);
  input_gradient(pass, layer, Group::down, dout, gated.columns(0, spec.ffn));                            // d(gated) [T, ffn]
  glu_backward(spec.activation, gated.columns(0, spec.ffn), gate_up_rows.columns(0, 2 * spec.ffn), gated.columns(0, spec.ffn), pass.stream);  // now dgate, dup; gated
  adapter_gradients(pass, layer, Group::down, gated.columns(0, spec.ffn), a, dout);
  decode_before(pass, layer, Group::down);
  const View<bf16> dinput = pass.rows(pass.work.dinput, spec.hidden);
  fill_gradient_tail(pass, layer, Group::gate_up, gate_up_rows);
  adapter_gradients(pass, layer, Group::gate_up, pass.rows(a.middle, spec.hidden), a, gate_up_rows, w.mlp_norm);
  input_gradient(pass, layer, Group::gate_up, gate_up_rows, dinput);                                     // [T, hidden]
  decode_before(pass, layer, Group::gate_up);
  pass.beside.join(pass.stream);
  rmsnorm_backward(norm(spec, w.mlp_norm), pass.rows(a.middle, spec.hidden), a.mlp_rstd, dinput, dhidden, true, pass.stream);
}

// d(x) from d(middle), in place.
void attention_half_backward(const DevicePass& pass, std::int64_t layer, View<const bf16> x, const LayerBuffers& a, View<bf16> dx, InputGradient wanted) {
  const ModelSpec& spec = pass.spec;
  const GroupShape &qkv = pass.geometry[Group::qkv], &o = pass.geometry[Group::o];
  const DeviceLayer& w = weights_of(pass, layer);
  const std::int64_t q = spec.q_size(), kv = spec.kv_size();
  const View<bf16> dhidden = dx.columns(0, spec.hidden);
  View<bf16> dout = dx.columns(0, o.rows());                                                             // [T, hidden, tail]
  if (spec.sandwich_norms) {
    dout = pass.rows(pass.work.dsub, o.rows(), spec.hidden + pass.geometry.tail(Group::o, Group::down));
    rmsnorm_backward(norm(spec, w.attention_norm), pass.rows(a.attention_out, spec.hidden), a.attention_rstd, dhidden, dout.columns(0, spec.hidden), false,
                     pass.stream);
  }
  const View<bf16> attention = pass.rows(a.attention, o.stride()), dattention = pass.rows(pass.work.dattention, q);
  fill_gradient_tail(pass, layer, Group::o, dout);
  adapter_gradients(pass, layer, Group::o, attention.columns(0, q), a, dout);
  input_gradient(pass, layer, Group::o, dout, dattention);                                               // [T, heads·head_dim]
  decode_before(pass, layer, Group::o);

  const View<bf16> dqkv = pass.rows(pass.work.dqkv, qkv.rows()), seen = pass.rows(a.qkv, qkv.outputs);
  attention_backward(attention_shape(spec, layer), seen.columns(0, q), seen.columns(q, kv), seen.columns(q + kv, kv), pass.tiles, attention.columns(0, q), a.lse,
                     dattention, dqkv.columns(0, q), dqkv.columns(q, kv), dqkv.columns(q + kv, kv), pass.work.attention_workspace, pass.stream);
  qkv_post_backward(qkv_shape(spec), qkv_post(pass, layer), pass.rows(a.qkv_raw, qkv.outputs), a.head_rstd, dqkv.columns(0, qkv.outputs), pass.stream);
  const bool input = wanted == InputGradient::wanted;
  const View<bf16> dinput = pass.rows(pass.work.dinput, spec.hidden);
  fill_gradient_tail(pass, layer, Group::qkv, dqkv);
  adapter_gradients(pass, layer, Group::qkv, x, a, dqkv, w.input_norm);
  if (input) input_gradient(pass, layer, Group::qkv, dqkv, dinput);                                      // [T, hidden]
  decode_before(pass, layer, Group::qkv);
  pass.beside.join(pass.stream);
  if (input) rmsnorm_backward(norm(spec, w.input_norm), x, a.input_rstd, dinput, dhidden, true, pass.stream);
}

}  // namespace

void attention_forward_half(const DevicePass& pass, std::int64_t layer, View<bf16> x, View<const bf16> delta, const LayerBuffers& a) {
  const ModelSpec& spec = pass.spec;
  const GroupShape &qkv = pass.geometry[Group::qkv], &o = pass.geometry[Group::o];
  const DeviceLayer& w = weights_of(pass, layer);
  const std::int64_t q = spec.q_size(), kv = spec.kv_size();
  const View<bf16> normed = pass.rows(pass.work.normed, qkv.stride(), spec.hidden + pass.geometry.tail(Group::qkv, Group::gate_up));
  rmsnorm_forward(norm(spec, w.input_norm), x, delta, normed.columns(0, spec.hidden), a.input_rstd, pass.stream);  // [T, hidden]
  const View<bf16> raw = pass.rows(a.qkv_raw, qkv.outputs), seen = pass.rows(a.qkv, qkv.outputs);
  project(pass, layer, Group::qkv, normed, a, raw);                                                         // [T, q + k + v]
  qkv_post_forward(qkv_shape(spec), qkv_post(pass, layer), raw, seen, a.head_rstd, pass.stream);
  const View<bf16> attention = pass.rows(a.attention, o.stride());
  attention_forward(attention_shape(spec, layer), seen.columns(0, q), seen.columns(q, kv), seen.columns(q + kv, kv), pass.tiles, attention.columns(0, q), a.lse,
                    pass.stream);                                                                        // [T, heads·head_dim]
  const View<bf16> middle = pass.rows(a.middle, spec.hidden);
  if (spec.sandwich_norms) {
    const View<bf16> out = pass.rows(a.attention_out, spec.hidden);
    project(pass, layer, Group::o, attention, a, out);                                                      // [T, hidden]
    rmsnorm_forward(norm(spec, w.attention_norm), out, {}, middle, a.attention_rstd, pass.stream);
  } else {
    project(pass, layer, Group::o, attention, a, middle);                                                   // [T, hidden]
  }
}

void mlp_forward_half(const DevicePass& pass, std::int64_t layer, View<const bf16> x, const LayerBuffers& a, View<bf16> y) {
  const ModelSpec& spec = pass.spec;
  const GroupShape &gate_up = pass.geometry[Group::gate_up], &down = pass.geometry[Group::down];
  const DeviceLayer& w = weights_of(pass, layer);
  const View<bf16> normed = pass.rows(pass.work.normed, gate_up.stride(), spec.hidden + pass.geometry.tail(Group::qkv, Group::gate_up));
  rmsnorm_forward(norm(spec, w.mlp_norm), pass.rows(a.middle, spec.hidden), x, normed.columns(0, spec.hidden), a.mlp_rstd, pass.stream);  // [T, hidden]
  const View<bf16> products = pass.rows(a.gate_up, gate_up.rows()).columns(0, 2 * spec.ffn);
  project(pass, layer, Group::gate_up, normed, a, products);                                                // [T, 2·ffn]
  if (y.data == nullptr && !spec.sandwich_norms) return;
  const View<bf16> gated = pass.rows(pass.work.gated, down.stride());
  glu_forward(spec.activation, products, gated.columns(0, spec.ffn), pass.stream);                       // [T, ffn]
  if (!spec.sandwich_norms) {
    project(pass, layer, Group::down, gated, a, y);                                                         // [T, hidden]
    return;
  }
  const View<bf16> out = pass.rows(a.mlp_out, spec.hidden);
  project(pass, layer, Group::down, gated, a, out);                                                         // [T, hidden]
  rmsnorm_forward(norm(spec, w.mlp_output_norm), out, {}, y, a.mlp_out_rstd, pass.stream);
}

void layer_backward(const DevicePass& pass, std::int64_t layer, View<const bf16> x, const LayerBuffers& a, View<bf16> dx, InputGradient input) {
  mlp_backward(pass, layer, a, dx);
  attention_half_backward(pass, layer, x, a, dx, input);
}

}  // namespace engine::cuda
