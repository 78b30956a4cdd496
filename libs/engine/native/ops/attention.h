// attention.h: causal self-attention over packed sequences of different lengths.
//   For token i of a sequence and head h (keys j of the same sequence, i - window < j <= i; window 0: j <= i):
//     s[j] = cap(scale · q[i,h]·k[j,h / group])      cap(s) = softcap · tanh(s / softcap), or s when softcap is 0
//     p = softmax(s)      out[i,h] = Σ p[j] · v[j,h / group]      lse[h,i] = log Σ exp(s[j])
//   group = heads / kv_heads. Compute::bf16 rounds the operands of the products (q, k, v, p and the gradients) to bf16.
//   Never mixes sequences, and never builds [T,T]: memory is O(T · head_dim).
#pragma once

#include <cstdint>
#include <span>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

struct AttentionShape {
  std::int64_t heads, kv_heads, head_dim;  // kv_heads divides heads
  float scale;
  std::int64_t window = 0;
  float softcap = 0;
};

// q [T, heads·head_dim], k and v [T, kv_heads·head_dim], out like q, lse [heads, T] (null when no backward follows).
// offsets: sequences + 1 ascending token numbers, first 0, last T. Throws invalid when they are not, or shapes disagree.
void attention_forward(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, std::span<const std::int64_t> offsets,
                       Rows out, float* lse);

// Overwrites dq, dk, dv from dout and what the forward read and wrote. Deterministic: every output is summed by one owner in one order.
void attention_backward(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, std::span<const std::int64_t> offsets,
                        ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv);

}  // namespace engine
