#include "infer/kv_cache.h"

#include <sys/mman.h>

#include <cstring>

#include "core/error.h"

namespace engine {

void KvCache::Unmap::operator()(std::byte* memory) const noexcept { munmap(memory, bytes); }

std::int64_t KvCache::block_bytes(const ModelSpec& spec, Compute compute) {
  return spec.layers * 2 * spec.kv_size() * kBlockTokens * dtype_size(compute == Compute::bf16 ? Dtype::bf16 : Dtype::f32);
}

KvCache::KvCache(const ModelSpec& spec, Compute compute, std::int64_t bytes) {
  const std::int64_t block = block_bytes(spec, compute);
  blocks_ = bytes / block;
  require(blocks_ >= 1, "the key/value cache of ", bytes, " bytes is too small; one block of ", kBlockTokens, " tokens needs ", block);
  require(blocks_ <= INT32_MAX, "the key/value cache of ", bytes, " bytes is too large");
  const auto size = static_cast<std::size_t>(blocks_ * block);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(Code::oom, memory != MAP_FAILED, "out of memory: ", size, " bytes of address space for the key/value cache are not to be had");
  memory_ = std::unique_ptr<std::byte, Unmap>(static_cast<std::byte*>(memory), Unmap{size});
  const std::int64_t layer_bytes = static_cast<std::int64_t>(size) / spec.layers;
  for (std::int64_t layer = 0; layer < spec.layers; ++layer)
    layers_.push_back({compute == Compute::bf16 ? Dtype::bf16 : Dtype::f32, memory_.get() + layer * layer_bytes, blocks_, kBlockTokens, spec.kv_heads, spec.head_dim});
  for (std::int64_t block_index = blocks_ - 1; block_index >= 0; --block_index) free_.push_back(static_cast<std::int32_t>(block_index));
}

bool KvCache::grow(std::vector<std::int32_t>& table, std::int64_t tokens) {
  const std::int64_t missing = blocks_for(tokens) - static_cast<std::int64_t>(table.size());
  if (missing > free_blocks()) return false;
  for (std::int64_t i = 0; i < missing; ++i) {
    table.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void KvCache::release(std::vector<std::int32_t>& table) {
  for (const std::int32_t block : table) {
    for (const KvPool& pool : layers_) {
      const std::int64_t bytes = pool.block_elements() * dtype_size(pool.dtype);
      std::memset(static_cast<std::byte*>(pool.data) + block * bytes, 0, static_cast<std::size_t>(bytes));
    }
    free_.push_back(block);
  }
  table.clear();
}

void CachedAttention::attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float*) {
  const KvPool& pool = cache_.layer(layer);
  kv_write(ex, pool, sequences_, rows_, k, v);
  attention_decode(ex, shape, pool, sequences_, rows_, q, out);
}

}  // namespace engine
