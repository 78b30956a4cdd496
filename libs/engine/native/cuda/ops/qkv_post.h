// qkv_post.h: what happens to the fused q, k, v between their product and attention: bias, the norms of q's and k's heads, rotary embedding.
//   A row is [q heads | k heads | v heads], each head head_dim wide. In fp32, rounded once:
//     u = raw + bias       q, k: u ← u · rstd · (w + offset) when there are norms       q, k: rotate (ops/rope.h)       v: u
//   In place (out = raw) when there are no norms; with norms the backward needs raw, so out is another buffer.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

struct QkvShape {
  std::int64_t heads, kv_heads, head_dim;  // head_dim a multiple of 16, at most 256
  constexpr std::int64_t columns() const noexcept { return (heads + 2 * kv_heads) * head_dim; }
};

// Everything optional is null. All in device memory.
struct QkvPost {
  const float* bias = nullptr;              // [columns]
  const float* q_norm = nullptr;            // [head_dim], with k_norm or not at all
  const float* k_norm = nullptr;            // [head_dim]
  float eps = 0, offset = 0;
  const float* cos = nullptr;               // [positions, rotary_dim / 2], attention factor included (engine::make_rope_table)
  const float* sin = nullptr;
  std::int64_t rotary_dim = 0;              // even, ≤ head_dim; the rest of a head passes through
  const std::int32_t* positions = nullptr;  // [T], rows of cos and sin
};

// raw and out [T, columns]. rstd [T, heads + kv_heads] is written when there are norms.
void qkv_post_forward(const QkvShape& shape, const QkvPost& post, View<const bf16> raw, View<bf16> out, float* rstd, cudaStream_t stream);

// d [T, columns]: in, the gradient of out; out, the gradient of raw (of the bias too: sum its rows). raw and rstd are read only with norms.
void qkv_post_backward(const QkvShape& shape, const QkvPost& post, View<const bf16> raw, const float* rstd, View<bf16> d, cudaStream_t stream);

}  // namespace engine::cuda
