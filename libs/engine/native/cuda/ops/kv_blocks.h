// kv_blocks.h: clearing and copying blocks of a paged key/value pool, in all layers at once.
//   The pool is `layers` runs of blocks, `layer_bytes` apart; a block is `block_bytes`, a multiple of 16. Asynchronous on `stream`.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

struct KvBlocks {
  void* pool = nullptr;
  std::int64_t layers = 0, layer_bytes = 0, block_bytes = 0;
};

void kv_zero(const KvBlocks& blocks, std::span<const std::int32_t> which, cudaStream_t stream);
void kv_copy(const KvBlocks& blocks, std::int32_t to, std::int32_t from, cudaStream_t stream);

}  // namespace engine::cuda
