// activations.h: the buffers of one micro-batch of at most T tokens.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/bf16.h"
#include "cuda/model/geometry.h"
#include "cuda/runtime/memory.h"

namespace engine::cuda {

// What a layer's backward reads, besides the layer's input. bf16 unless float; strides in columns. What the architecture lacks stays null.
struct LayerBuffers {
  bf16* qkv_raw = nullptr;        // [T, q + k + v] before the heads' norms; qkv itself where there are none
  bf16* qkv = nullptr;            // [T, q + k + v] as attention sees them
  bf16* attention = nullptr;      // [T, heads·head_dim], tail of o
  bf16* attention_out = nullptr;  // [T, hidden] before attention_norm
  bf16* middle = nullptr;         // [T, hidden] input + attention
  bf16* gate_up = nullptr;        // [T, 2·ffn], tail of gate_up; the backward turns it into its gradient
  bf16* mlp_out = nullptr;        // [T, hidden] before mlp_output_norm
  float *input_rstd = nullptr, *attention_rstd = nullptr, *mlp_rstd = nullptr, *mlp_out_rstd = nullptr;  // [T]
  float* head_rstd = nullptr;     // [T, heads + kv_heads]
  float* lse = nullptr;           // [heads, T]
  std::array<bf16*, kGroups> directed{};  // [T, outputs] x·Vᵀ of each group's DoRA adapters, before the magnitudes
  std::array<bf16*, kGroups> low{};  // [T, tail] x·Aᵀ of each group's adapters: every layer's own, whatever it keeps, for they are small
};

// What a layer keeps from its forward to its backward.
//   all        everything                              part      all but the MLP's inner activations: gate and up are computed again
//   input      its input alone: all but the last product is computed again
//   host       its input, in pinned host memory
enum class Keep : std::uint8_t { all, part, input, host };

void take_attention_buffers(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, LayerBuffers& to);
void take_mlp_buffers(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, LayerBuffers& to);
void take_adapter_buffers(DeviceArena& arena, const Geometry& geometry, std::int64_t layer, std::int64_t tokens, LayerBuffers& to);

// Memory that one layer after another uses.
struct WorkBuffers {
  bf16* normed = nullptr;      // [T, hidden], widest tail of qkv and gate_up
  bf16* gated = nullptr;       // [T, ffn], tail of down; in the backward first its gradient, then itself again
  bf16* dinput = nullptr;      // [T, hidden] the gradient of a norm's output
  bf16* dsub = nullptr;        // [T, hidden], tail of o and down: the gradient of a sub-layer's output; only with norms behind sub-layers, or DoRA
  bf16* dqkv = nullptr;        // [T, q + k + v], tail of qkv
  bf16* dattention = nullptr;  // [T, heads·head_dim]
  bf16* masked = nullptr;      // [T, widest input], with DoRA its tail; only with dropout
  bf16* scaled = nullptr;      // [T, widest output, tail] magnitudes / norms ⊙ dy; only with dropout and DoRA, else in dy's place
  float* magnitude_sums = nullptr;  // only with DoRA
  void* attention_workspace = nullptr;
  float* adapter_sums = nullptr;  // [tail, inputs] and [tail, outputs] of one group, before they are added to the gradients
  // The loss's, in the same place.
  bf16 *gathered = nullptr, *head_in = nullptr, *logits = nullptr;  // [rows, hidden] twice, [rows, vocab]
  float *losses = nullptr, *head_rstd = nullptr;                    // [rows]
  std::int64_t loss_rows = 0;
};
WorkBuffers take_work(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, std::int64_t tokens, std::int64_t loss_rows);

// Columns between rows of logits.
inline std::int64_t logit_stride(const ModelSpec& spec) { return (spec.vocab + 7) / 8 * 8; }

}  // namespace engine::cuda
