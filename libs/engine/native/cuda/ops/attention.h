// attention.h: causal self-attention over packed sequences.   The mathematics are those of ops/attention.h with Compute::bf16.
//   q [T, heads·head_dim], k and v [T, kv_heads·head_dim], out like q: usually column slices of the fused qkv and of a buffer with a tail.
//   Softmax and its statistics are fp32; probabilities and gradients of scores are rounded to bf16 for the products, sums are fp32.
//   head_dim 16, 32, 64, 96, 128 or 256. Memory O(T · head_dim). Deterministic: every output is summed by one block in one order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/attention.h"

namespace engine::cuda {

// Rows of one tile. Tiles cover every sequence from its first token; the last of a sequence may be short.
inline constexpr std::int64_t kAttentionTile = 128;

// One tile: tokens [row, min(row + kAttentionTile, last)) of the sequence [first, last). An empty one has first = last = row = 0.
struct AttentionTile {
  std::int32_t row, first, last, reserved;
};

// The tiles of `offsets` (sequences + 1 ascending token numbers), those with most work first. Upload them; the same table serves forward and backward.
std::vector<AttentionTile> attention_tiles(std::span<const std::int64_t> offsets);
// The most tiles that T tokens in `sequences` sequences can have: the size of a captured graph's table, filled up with empty tiles.
std::int64_t most_attention_tiles(std::int64_t tokens, std::int64_t sequences);

struct AttentionTiles {
  const AttentionTile* tiles;  // on the device
  std::int64_t count;
};

// lse [heads, T], written when not null.
void attention_forward(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v, AttentionTiles tiles, View<bf16> out,
                       float* lse, cudaStream_t stream);

// Overwrites dq, dk, dv. `workspace` holds attention_backward_workspace(shape, T) bytes.
void attention_backward(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v, AttentionTiles tiles,
                        View<const bf16> out, const float* lse, View<const bf16> dout, View<bf16> dq, View<bf16> dk, View<bf16> dv, void* workspace,
                        cudaStream_t stream);
std::int64_t attention_backward_workspace(const AttentionShape& shape, std::int64_t tokens);

}  // namespace engine::cuda
