#include "infer/host_kv_memory.h"

#include <sys/mman.h>

#include <cstring>

#include "core/error.h"

namespace engine {
namespace {

std::int64_t layer_block_bytes(const KvPool& pool) { return pool.block_elements() * dtype_size(pool.dtype); }

std::byte* block_of(const KvPool& pool, std::int32_t block) { return static_cast<std::byte*>(pool.data) + block * layer_block_bytes(pool); }

}  // namespace

void HostKvMemory::Unmap::operator()(std::byte* memory) const noexcept { munmap(memory, bytes); }

std::int64_t HostKvMemory::block_bytes(const ModelSpec& spec, Compute compute) {
  return spec.layers * 2 * spec.kv_size() * kBlockTokens * dtype_size(compute == Compute::bf16 ? Dtype::bf16 : Dtype::f32);
}

HostKvMemory::HostKvMemory(const ModelSpec& spec, Compute compute, std::int64_t bytes) {
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
}

void HostKvMemory::zero(std::span<const std::int32_t> blocks) noexcept {
  for (const KvPool& pool : layers_)
    for (const std::int32_t block : blocks) std::memset(block_of(pool, block), 0, static_cast<std::size_t>(layer_block_bytes(pool)));
}

void HostKvMemory::copy(std::int32_t to, std::int32_t from) noexcept {
  for (const KvPool& pool : layers_) std::memcpy(block_of(pool, to), block_of(pool, from), static_cast<std::size_t>(layer_block_bytes(pool)));
}

void CachedAttention::attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float*) {
  const KvPool& pool = memory_.layer(layer);
  kv_write(ex, pool, sequences_, rows_, k, v);
  attention_decode(ex, shape, pool, sequences_, rows_, q, out);
}

}  // namespace engine
