// paged_attention.h: attention of new tokens over keys and values kept in pages.   The mathematics are those of attention.h.
//   A layer's cache is a pool of pages of kPageTokens tokens, laid out as the CPU's is: [page][kv_head][k, v][slot][head_dim], bf16. A sequence owns a list
//   of pages, its row of the table: token t of it lies in page tables[sequence][t / kPageTokens], slot t % kPageTokens.
//   Everything that changes from step to step is in device memory, so that a captured graph stays true. Padding rows have sequence -1: nothing is written to
//   the cache for them, and their output is zeros. Entries of the table are not checked: the host does that.
//   head_dim 64, 96, 128 or 256 (and 16, 32 for small models).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/ops/qkv_post.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/attention.h"

namespace engine::cuda {

inline constexpr std::int64_t kPageTokens = 16;

// One layer's pool.
struct KvPages {
  bf16* data = nullptr;  // 16-byte aligned
  std::int64_t kv_heads = 0, head_dim = 0;

  constexpr std::int64_t page_elements() const noexcept { return kv_heads * 2 * kPageTokens * head_dim; }
};

// What each row is: token position[r] of sequence[r].
struct PagedRows {
  const std::int32_t* sequence = nullptr;  // [T], a row of tables, or -1
  const std::int32_t* position = nullptr;  // [T]
  const std::int32_t* tables = nullptr;    // [sequences, table_stride]
  std::int64_t table_stride = 0;
  // Each row is its sequence's only one of this step, and all that is here, and the keys and values of its earlier tokens, were in device memory before the
  // step's first kernel was given to the stream: then they may be read while kernels of the step still run.
  bool apart = false;
  // Whether the order of a row's sums may depend on how many rows there are: many rows need not be divided into parts, whose joining takes time.
  bool any_order = false;
};

// qkv_post_forward of generation: q in place, k and v into their slots. Bias, norms of heads and rotation as in qkv_post.h, with rows.position for
// post.positions; the columns of k and v in qkv are left undefined.
void qkv_post_paged(const QkvShape& shape, const QkvPost& post, View<bf16> qkv, const PagedRows& rows, const KvPages& pages, cudaStream_t stream);

// out[r] = attention of q[r] over positions 0 … position[r] of its sequence, all already written. q and out [T, heads · head_dim].
// Every row is computed alone, divided by its length only: its bits do not depend on the other rows.
// `most_tokens` ≥ position + 1 of every row, now and whenever a graph is replayed; workspace of paged_attention_workspace(shape, T, most_tokens) bytes,
// zeroed once before its first use; calls of one stream share it.
// Meant for rows that are one token each; right for any, but then a prompt's keys are read once for every row of it.
void paged_attention_decode(const AttentionShape& shape, View<const bf16> q, const PagedRows& rows, const KvPages& pages, View<bf16> out,
                            std::int64_t most_tokens, void* workspace, cudaStream_t stream);
// The same of rows that are apart, with qkv_post_paged in it, to the bit: qkv [T, shape's columns] is left as it was, keys and values of the rows go to their
// slots. For the posts that paged_attention_finishes tells: those that turn whole heads, or nothing.
bool paged_attention_finishes(const AttentionShape& shape, const QkvPost& post);
void paged_attention_step(const AttentionShape& shape, const QkvPost& post, View<const bf16> qkv, const PagedRows& rows, const KvPages& pages, View<bf16> out,
                          std::int64_t most_tokens, void* workspace, cudaStream_t stream);
std::int64_t paged_attention_workspace(const AttentionShape& shape, std::int64_t rows, std::int64_t most_tokens);

// Rows first_row … first_row + rows - 1 of q, tokens position … of `sequence`: a chunk of a prompt, or one tile of it.
struct PagedChunk {
  std::int32_t first_row, rows, sequence, position;
};
inline constexpr std::int64_t kPagedTile = 128;
// The chunks cut into tiles of at most kPagedTile rows, those with most work first. Upload them; a table may be filled up with tiles of 0 rows.
std::vector<PagedChunk> paged_tiles(std::span<const PagedChunk> chunks);

// The same for chunks of prompts: their keys, those of the chunk included, are already written. `tiles` in device memory; rows in none are left alone.
// `most_tokens` ≥ position + rows of every tile. How a tile's sums are ordered depends on it and on the number of tiles.
// `workspace` of paged_prefill_workspace(shape) bytes; calls of one stream share it.
void paged_attention_prefill(const AttentionShape& shape, View<const bf16> q, const PagedChunk* tiles, std::int64_t tile_count, std::int64_t most_tokens,
                             const std::int32_t* tables, std::int64_t table_stride, const KvPages& pages, View<bf16> out, void* workspace, cudaStream_t stream);
std::int64_t paged_prefill_workspace(const AttentionShape& shape);

}  // namespace engine::cuda
