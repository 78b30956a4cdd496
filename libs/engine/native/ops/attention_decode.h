// attention_decode.h: attention of new tokens over a paged key/value cache.
//   The cache of one layer is a pool of blocks; a sequence owns a list of them (its block table), token t of the sequence in block
//   t / block_tokens at slot t % block_tokens. Element layout: [block][kv_head][k, v][slot][head_dim].
//   The mathematics is that of attention.h; several rows of one sequence may be given (a prefill chunk).
#pragma once

#include <cstdint>
#include <span>

#include "core/exec.h"
#include "ops/attention.h"
#include "ops/matrix.h"

namespace engine {

struct KvPool {
  Dtype dtype = Dtype::f32;  // f32 or bf16
  void* data = nullptr;
  std::int64_t blocks = 0, block_tokens = 0, kv_heads = 0, head_dim = 0;

  std::int64_t block_elements() const noexcept { return kv_heads * 2 * block_tokens * head_dim; }
  std::int64_t element_count() const noexcept { return blocks * block_elements(); }
  // First element of token slot `slot` of block `block`; which: 0 key, 1 value.
  std::int64_t element(std::int64_t block, std::int64_t kv_head, int which, std::int64_t slot) const noexcept {
    return block * block_elements() + ((kv_head * 2 + which) * block_tokens + slot) * head_dim;
  }
};

// One sequence's place in the pool.
struct KvSequence {
  std::span<const std::int32_t> block_table;
};

// Query or key row r belongs to sequences[sequence] at `position` (0-based, in the sequence).
struct KvRow {
  std::int32_t sequence;
  std::int32_t position;
};

// Stores k and v [R, kv_heads·head_dim] of `rows` into the pool, rounding to its dtype. Throws invalid for a position outside its
// sequence's block table or a block outside the pool.
void kv_write(const Exec& ex, const KvPool& pool, std::span<const KvSequence> sequences, std::span<const KvRow> rows, ConstRows k, ConstRows v);

// out[r] = attention of q[r] over positions 0 … rows[r].position of its sequence (limited by shape.window), all already written.
// q and out [R, heads·head_dim]. Each row is computed alone: its bits do not depend on the other rows, nor on how a prompt was chunked.
void attention_decode(const Exec& ex, const AttentionShape& shape, const KvPool& pool, std::span<const KvSequence> sequences,
                      std::span<const KvRow> rows, ConstRows q, Rows out);

}  // namespace engine
