// host_kv_memory.h: the key/value blocks of a CPU. The memory is reserved at once and becomes real as blocks are first used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/exec.h"
#include "infer/kv_memory.h"
#include "model/forward.h"
#include "model/spec.h"
#include "ops/attention_decode.h"

namespace engine {

class HostKvMemory final : public KvMemory {
 public:
  static constexpr std::int64_t kBlockTokens = 32;

  // Elements are bf16 in bf16 compute, where attention rounds keys and values to it anyway, else fp32. Throws oom.
  HostKvMemory(const ModelSpec& spec, Compute compute, std::int64_t bytes);

  // Bytes of one block over all layers.
  static std::int64_t block_bytes(const ModelSpec& spec, Compute compute);

  std::int64_t blocks() const noexcept override { return blocks_; }
  std::int64_t block_tokens() const noexcept override { return kBlockTokens; }
  void zero(std::span<const std::int32_t> blocks) noexcept override;
  void copy(std::int32_t to, std::int32_t from) noexcept override;
  const KvPool& layer(std::int64_t index) const { return layers_[static_cast<std::size_t>(index)]; }

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte, Unmap> memory_{nullptr, Unmap{0}};
  std::int64_t blocks_ = 0;
  std::vector<KvPool> layers_;
};

// Attention of a step's rows over the cache: their keys and values are written first, so rows of one sequence see each other.
class CachedAttention final : public AttentionOver {
 public:
  CachedAttention(const HostKvMemory& memory, std::span<const KvSequence> sequences, std::span<const KvRow> rows)
      : memory_(memory), sequences_(sequences), rows_(rows) {}
  void attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float* lse) override;

 private:
  const HostKvMemory& memory_;
  std::span<const KvSequence> sequences_;
  std::span<const KvRow> rows_;
};

}  // namespace engine
