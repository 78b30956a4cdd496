// kv_cache.h: keys and values of running sequences, in blocks of kBlockTokens tokens that sequences take and give back.
//   The memory is reserved at once and becomes real as blocks are first used. Blocks are counted: several sequences may hold one that none of them
//   writes any more. A block that nobody holds is zeroed, unless a scope remembers what it holds; then it stays until its room is needed, the one
//   that was held longest ago first, and is zeroed then. Without a scope nothing of a sequence outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "core/exec.h"
#include "infer/prefix_index.h"
#include "model/forward.h"
#include "model/spec.h"
#include "ops/attention_decode.h"

namespace engine {

inline constexpr std::int64_t kBlockTokens = 32;

constexpr std::int64_t blocks_for(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

class KvCache {
 public:
  // Elements are bf16 in bf16 compute, where attention rounds keys and values to it anyway, else fp32. Throws oom.
  KvCache(const ModelSpec& spec, Compute compute, std::int64_t bytes);

  std::int64_t total_blocks() const noexcept { return blocks_; }
  // That can be had: empty ones, and remembered ones that nobody holds.
  std::int64_t free_blocks() const noexcept { return static_cast<std::int64_t>(free_.size() + idle_.size()); }
  // Grows `table` until it has room for `tokens`; false, changing nothing, when too few blocks are free.
  bool grow(std::vector<std::int32_t>& table, std::int64_t tokens);
  // Gives all blocks of `table` back and empties it.
  void release(std::vector<std::int32_t>& table);

  // Fills the empty `table` with the blocks that hold the beginning of `tokens`, and returns how many tokens they hold. What only begins like a
  // remembered block is a copy of it, since it will be written.
  std::int64_t reuse(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::vector<std::int32_t>& table);
  // Remembers that `table` holds `tokens`: its whole blocks, and with `last` also what the last one holds, which must not be written any more.
  void remember(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::span<const std::int32_t> table, bool last);
  // Nobody will find these blocks again.
  void forget(std::span<const std::int32_t> table);
  const KvPool& layer(std::int64_t index) const { return layers_[static_cast<std::size_t>(index)]; }

  // Bytes of one block over all layers.
  static std::int64_t block_bytes(const ModelSpec& spec, Compute compute);

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte, Unmap> memory_{nullptr, Unmap{0}};
  std::int64_t blocks_ = 0;
  std::vector<KvPool> layers_;
  std::int32_t take();  // one with room to be had
  void hold(std::int32_t block);
  void zero(std::int32_t block);
  void drop(std::int32_t block);  // the index has let go of it

  struct Block {
    std::int32_t holders = 0;
    bool remembered = false;
    std::list<std::int32_t>::iterator idle;  // its place in idle_, while it is remembered and nobody holds it
  };
  std::vector<Block> states_;
  std::vector<std::int32_t> free_;  // zero, taken from the back
  std::list<std::int32_t> idle_;    // held longest ago first
  PrefixIndex index_{kBlockTokens};
};

// Attention of a step's rows over the cache: their keys and values are written first, so rows of one sequence see each other.
class CachedAttention final : public AttentionOver {
 public:
  CachedAttention(const KvCache& cache, std::span<const KvSequence> sequences, std::span<const KvRow> rows)
      : cache_(cache), sequences_(sequences), rows_(rows) {}
  void attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float* lse) override;

 private:
  const KvCache& cache_;
  std::span<const KvSequence> sequences_;
  std::span<const KvRow> rows_;
};

}  // namespace engine
