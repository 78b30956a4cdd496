#include "cuda/model/activations.h"

#include <algorithm>

#include "cuda/ops/attention.h"
#include "cuda/ops/dora.h"

namespace engine::cuda {
namespace {

void take_directed(DeviceArena& arena, const Geometry& geometry, Group group, std::int64_t tokens, LayerBuffers& to) {
  if (geometry.decomposes(group)) to.directed[static_cast<std::size_t>(group)] = arena.take<bf16>(tokens * geometry[group].outputs);
}

}  // namespace

void take_attention_buffers(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, LayerBuffers& to) {
  to.qkv = arena.take<bf16>(tokens * geometry[Group::qkv].outputs);
  to.qkv_raw = spec.qk_norm ? arena.take<bf16>(tokens * geometry[Group::qkv].outputs) : to.qkv;
  if (spec.qk_norm) to.head_rstd = arena.take<float>(tokens * (spec.heads + spec.kv_heads));
  to.attention = arena.take<bf16>(tokens * geometry[Group::o].stride());
  to.lse = arena.take<float>(tokens * spec.heads);
  to.middle = arena.take<bf16>(tokens * spec.hidden);
  to.input_rstd = arena.take<float>(tokens);
  to.mlp_rstd = arena.take<float>(tokens);
  take_directed(arena, geometry, Group::qkv, tokens, to);
  take_directed(arena, geometry, Group::o, tokens, to);
  if (!spec.sandwich_norms) return;
  to.attention_out = arena.take<bf16>(tokens * spec.hidden);
  to.attention_rstd = arena.take<float>(tokens);
}

void take_mlp_buffers(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, LayerBuffers& to) {
  to.gate_up = arena.take<bf16>(tokens * geometry[Group::gate_up].rows());
  take_directed(arena, geometry, Group::gate_up, tokens, to);
  take_directed(arena, geometry, Group::down, tokens, to);
  if (!spec.sandwich_norms) return;
  to.mlp_out = arena.take<bf16>(tokens * spec.hidden);
  to.mlp_out_rstd = arena.take<float>(tokens);
}

void take_adapter_buffers(DeviceArena& arena, const Geometry& geometry, std::int64_t layer, std::int64_t tokens, LayerBuffers& to) {
  for (std::size_t g = 0; g < kGroups; ++g)
    if (geometry.adapts(layer, static_cast<Group>(g))) to.low[g] = arena.take<bf16>(tokens * geometry.groups[g].tail);
}

WorkBuffers take_work(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, std::int64_t loss_rows) {
  WorkBuffers work;
  const std::int64_t start = arena.used();
  // Between a forward and its backward nothing of the layers' is alive, so the loss takes the same memory.
  work.loss_rows = loss_rows;
  work.gathered = arena.take<bf16>(loss_rows * spec.hidden);
  work.head_in = arena.take<bf16>(loss_rows * spec.hidden);
  work.logits = arena.take<bf16>(loss_rows * logit_stride(spec));
  work.losses = arena.take<float>(loss_rows);
  work.head_rstd = arena.take<float>(loss_rows);
  const std::int64_t loss_end = arena.used();
  arena.rewind(start);

  work.normed = arena.take<bf16>(tokens * (spec.hidden + geometry.tail(Group::qkv, Group::gate_up)));
  work.dinput = arena.take<bf16>(tokens * spec.hidden);
  if (spec.sandwich_norms || geometry.decomposes(Group::o) || geometry.decomposes(Group::down)) work.dsub = arena.take<bf16>(tokens * (spec.hidden + geometry.tail(Group::o, Group::down)));
  std::int64_t sums = 0, widest_input = 0, widest_output = 0, most_outputs = 0;
  for (const GroupShape& group : geometry.groups) {
    sums = std::max(sums, group.tail * (group.inputs + group.outputs));
    widest_input = std::max(widest_input, geometry.dora ? group.stride() : group.inputs);
    widest_output = std::max(widest_output, group.rows());
    most_outputs = std::max(most_outputs, group.outputs);
  }
  if (sums > 0) work.adapter_sums = arena.take<float>(sums);
  if (geometry.dropout) work.masked = arena.take<bf16>(tokens * widest_input);
  if (geometry.dropout && geometry.dora) work.scaled = arena.take<bf16>(tokens * widest_output);
  if (geometry.dora) work.magnitude_sums = static_cast<float*>(arena.take_bytes(dora_workspace(tokens, most_outputs)));
  // The MLP's inner activation is alive in the MLP's part alone, the gradients of q, k, v in attention's part alone.
  const std::int64_t inner = arena.used();
  work.gated = arena.take<bf16>(tokens * geometry[Group::down].stride());
  const std::int64_t mlp_end = arena.used();
  arena.rewind(inner);
  work.dqkv = arena.take<bf16>(tokens * geometry[Group::qkv].rows());
  work.dattention = arena.take<bf16>(tokens * spec.q_size());
  work.attention_workspace =
      arena.take_bytes(attention_backward_workspace({spec.heads, spec.kv_heads, spec.head_dim, spec.attention_scale, 0, spec.attention_softcap}, tokens));
  // Behind the longest of the three.
  const std::int64_t end = std::max({loss_end, mlp_end, arena.used()});
  arena.take_bytes(end - arena.used());
  return work;
}

}  // namespace engine::cuda
