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

// The shrinks x·Aᵀ and dy·sB, and the sums over tokens that gradients are, are products of the library on the tail's rows and columns (gemm.h): all
// adapters of a group at once, which read the wide activation once. A sum has a row for each column of the tail:
//   of A: sums[j, c] = Σ_t dlow[t, j] · x[t, c]      grad[j, c] += scale · sums[j, c]      grad [rank, columns],  scale 1
//   of B: sums[j, c] = Σ_t low[t, j] · dy[t, c]      grad[c, j] += scale · sums[j, c]      grad [columns, rank],  scale s
struct LoraGradient {
  View<const float> sums;  // [rank, columns]: one adapter's slot of rows, its part of the columns
  float* grad;             // dense
  bool of_b;
  float scale;
};
inline constexpr std::int64_t kMostLoraGradients = 2 * kMostLoraParts;
// 1 to 8 gradients in one launch; their memory does not overlap.
void lora_add_gradients(std::span<const LoraGradient> gradients, cudaStream_t stream);

}  // namespace engine::cuda
