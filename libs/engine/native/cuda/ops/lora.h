// lora.h: low-rank adapters folded into the products of the base weights.
//   The scratch S [N + r, K + r] that receives a weight W [N, K] carries its adapters in a tail of r columns and r rows:
//       S = [ W  sB ]    so that   y  = [x | x·Aᵀ]·[W | sB]ᵀ = x·Wᵀ + s·(x·Aᵀ)·Bᵀ          one nt product
//           [ A   . ]              dx = [dy | dy·sB]·[W ; A]  = dy·W + (dy·sB)·A            one nn product
//   r is the sum of the adapters' slots, padded to a multiple of 16 (kSlot); W may hold several projections one below another (q, k, v), each with its
//   own slot of columns and rows; what lies outside their blocks is zero.
//   Operands are rounded to bf16, A and s·B included; the fp32 masters stay with the trainer. Asynchronous on `stream`.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

inline constexpr std::int64_t kSlot = 16;        // columns of a tail come in multiples of this
inline constexpr std::int64_t kMostLoraParts = 4;

constexpr std::int64_t slot_columns(std::int64_t rank) { return (rank + kSlot - 1) / kSlot * kSlot; }

// One projection's adapter: A [rank, K] and B [outputs, rank], fp32, dense, on the device.
struct LoraPart {
  const float* a;
  const float* b;
  std::int64_t rank;
  float scale;                 // s = alpha / rank (or / √rank)
  std::int64_t first_output;   // the row of W where this projection begins
  std::int64_t outputs;
  std::int64_t first_slot;     // the column of the tail where its slot begins, a multiple of kSlot; it is slot_columns(rank) wide
};

// Writes the tail rows and columns of `scratch` [N + tail, K + tail], zeros included, except the corner. 1 to 4 parts.
void lora_pack(std::span<const LoraPart> parts, View<bf16> scratch, std::int64_t tail, cudaStream_t stream);

// low[t, j] = Σ_k x[t, k] · a[j, k]         x [T, K], a [r, K] (the scratch's tail rows), low [T, r] (x's own tail columns): the shrink, r ≤ 256
void lora_shrink(View<const bf16> x, View<const bf16> a, View<bf16> low, cudaStream_t stream);
// dlow[t, j] = Σ_n dy[t, n] · sb[n, j]      dy [T, N], sb [N, r] (the scratch's tail columns), dlow [T, r] (dy's own tail columns)
void lora_shrink_backward(View<const bf16> dy, View<const bf16> sb, View<bf16> dlow, cudaStream_t stream);

// One gradient, summed over tokens in a fixed order and added to fp32 memory:
//   of A: low = dy·sB (its slot), wide = x:   grad[j, c] += scale · Σ_t low[t, j] · wide[t, c]      grad [rank, C],  scale 1
//   of B: low = x·Aᵀ  (its slot), wide = dy:  grad[c, j] += scale · Σ_t low[t, j] · wide[t, c]      grad [C, rank],  scale s
struct LoraGradient {
  View<const bf16> low;   // [T, rank]
  View<const bf16> wide;  // [T, C]
  float* grad;
  bool of_b;
  float scale;
};
// 1 to 4 gradients of the same T in one launch. `workspace` [lora_gradient_workspace(...)] bytes on the device.
void lora_gradients(std::span<const LoraGradient> parts, void* workspace, std::int64_t workspace_bytes, cudaStream_t stream);
// Enough for any call with at most `tokens` tokens, `parts` gradients of rank ≤ `rank`, and at most `columns` columns each.
std::int64_t lora_gradient_workspace(std::int64_t tokens, std::int64_t parts, std::int64_t rank, std::int64_t columns);

}  // namespace engine::cuda
