// kv_memory.h: where keys and values lie. KvCache (kv_cache.h) decides which block holds what; this only clears and copies them.
#pragma once

#include <cstdint>
#include <span>

namespace engine {

class KvMemory {
 public:
  virtual ~KvMemory() = default;
  KvMemory() = default;
  KvMemory(const KvMemory&) = delete;
  KvMemory& operator=(const KvMemory&) = delete;

  virtual std::int64_t blocks() const noexcept = 0;
  virtual std::int64_t block_tokens() const noexcept = 0;
  // In the order of the steps that read and write the blocks; on a device without waiting for it. Neither throws: what fails on a device shows at the
  // next step.
  virtual void zero(std::span<const std::int32_t> blocks) noexcept = 0;
  virtual void copy(std::int32_t to, std::int32_t from) noexcept = 0;
};

}  // namespace engine
