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
  states_.resize(static_cast<std::size_t>(blocks_));
  for (std::int64_t block_index = blocks_ - 1; block_index >= 0; --block_index) free_.push_back(static_cast<std::int32_t>(block_index));
}

void KvCache::zero(std::int32_t block) {
  for (const KvPool& pool : layers_) {
    const std::int64_t bytes = pool.block_elements() * dtype_size(pool.dtype);
    std::memset(static_cast<std::byte*>(pool.data) + block * bytes, 0, static_cast<std::size_t>(bytes));
  }
}

void KvCache::drop(std::int32_t block) {
  Block& state = states_[static_cast<std::size_t>(block)];
  state.remembered = false;
  if (state.holders > 0) return;
  idle_.erase(state.idle);
  zero(block);
  free_.push_back(block);
}

void KvCache::hold(std::int32_t block) {
  Block& state = states_[static_cast<std::size_t>(block)];
  if (state.holders++ == 0 && state.remembered) idle_.erase(state.idle);
}

std::int32_t KvCache::take() {
  if (free_.empty()) index_.erase(idle_.front(), [this](std::int32_t block) { drop(block); });
  const std::int32_t block = free_.back();
  free_.pop_back();
  hold(block);
  return block;
}

bool KvCache::grow(std::vector<std::int32_t>& table, std::int64_t tokens) {
  const std::int64_t missing = blocks_for(tokens) - static_cast<std::int64_t>(table.size());
  if (missing > free_blocks()) return false;
  for (std::int64_t i = 0; i < missing; ++i) table.push_back(take());
  return true;
}

void KvCache::release(std::vector<std::int32_t>& table) {
  // Ends before beginnings: of a remembered text the end goes first when room is needed, and its beginning can still be shared.
  for (; !table.empty(); table.pop_back()) {
    const std::int32_t block = table.back();
    Block& state = states_[static_cast<std::size_t>(block)];
    if (--state.holders > 0) continue;
    if (state.remembered) {
      state.idle = idle_.insert(idle_.end(), block);
    } else {
      zero(block);
      free_.push_back(block);
    }
  }
}

std::int64_t KvCache::reuse(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::vector<std::int32_t>& table) {
  const PrefixIndex::Match match = index_.find(scope, tokens);
  for (const std::int32_t block : match.blocks) {
    hold(block);
    table.push_back(block);
  }
  const std::int64_t whole = static_cast<std::int64_t>(match.blocks.size()) * kBlockTokens;
  if (match.partial < 0) return whole;
  hold(match.partial);  // not to be evicted for its own copy
  std::int64_t copied = 0;
  if (free_blocks() > 0) {
    const std::int32_t own = take();
    for (const KvPool& pool : layers_) {
      const std::int64_t bytes = pool.block_elements() * dtype_size(pool.dtype);
      std::memcpy(static_cast<std::byte*>(pool.data) + own * bytes, static_cast<const std::byte*>(pool.data) + match.partial * bytes, static_cast<std::size_t>(bytes));
    }
    table.push_back(own);
    copied = match.partial_tokens;
  }
  std::vector<std::int32_t> source{match.partial};
  release(source);
  return whole + copied;
}

void KvCache::remember(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::span<const std::int32_t> table, bool last) {
  index_.insert(scope, tokens, table, last, [this](std::int32_t block) { states_[static_cast<std::size_t>(block)].remembered = true; });
}

void KvCache::forget(std::span<const std::int32_t> table) {
  for (const std::int32_t block : table) index_.erase(block, [this](std::int32_t gone) { drop(gone); });
}

void CachedAttention::attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float*) {
  const KvPool& pool = cache_.layer(layer);
  kv_write(ex, pool, sequences_, rows_, k, v);
  attention_decode(ex, shape, pool, sequences_, rows_, q, out);
}

}  // namespace engine
