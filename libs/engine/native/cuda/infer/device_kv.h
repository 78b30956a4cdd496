// device_kv.h: the key/value blocks of a GPU.   bf16; a layer's pool is [block][kv_head][k, v][slot][head_dim] (ops/attention_decode.h), layers one after
//   another. One block more than the cache knows takes what the rows that fill up a captured batch write.
#pragma once

#include <exception>

#include "cuda/ops/kv_blocks.h"
#include "cuda/runtime/memory.h"
#include "infer/kv_memory.h"
#include "model/spec.h"
#include "ops/attention_decode.h"

namespace engine::cuda {

class DeviceKv final : public KvMemory {
 public:
  static constexpr std::int64_t kBlockTokens = 16;

  // As many blocks as `bytes` hold; zeroed on `stream`, where all later work on them is given too. Throws oom.
  DeviceKv(const ModelSpec& spec, std::int64_t bytes, cudaStream_t stream);

  // Bytes of one block over all layers.
  static std::int64_t block_bytes(const ModelSpec& spec);

  std::int64_t blocks() const noexcept override { return blocks_; }
  std::int64_t block_tokens() const noexcept override { return kBlockTokens; }
  void zero(std::span<const std::int32_t> blocks) noexcept override;
  void copy(std::int32_t to, std::int32_t from) noexcept override;

  KvPool layer(std::int64_t index) const noexcept;
  std::int32_t spare_block() const noexcept { return static_cast<std::int32_t>(blocks_); }
  // All of it: scratch as long as no block is taken.
  void* data() const noexcept { return memory_.data(); }
  std::int64_t bytes() const noexcept { return memory_.bytes(); }
  // Throws what zero or copy ran into.
  void check() const;

 private:
  std::int64_t blocks_;
  std::int64_t layers_, kv_heads_, head_dim_;
  DeviceMemory memory_;
  KvBlocks all_;
  cudaStream_t stream_;
  std::exception_ptr failure_;
};

}  // namespace engine::cuda
