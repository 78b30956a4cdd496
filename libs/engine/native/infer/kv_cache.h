// kv_cache.h: which blocks of keys and values belong to which running sequences, that take them and give them back. Knows block numbers; what is in
//   them is the memory's (kv_memory.h).
//   Blocks are counted: several sequences may hold one that none of them writes any more. A block that nobody holds is zeroed, unless a scope remembers
//   what it holds; then it stays until its room is needed, the one that was held longest ago first, and is zeroed then. Without a scope nothing of a
//   sequence outlives it.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "infer/kv_memory.h"
#include "infer/prefix_index.h"

namespace engine {

class KvCache {
 public:
  // Borrows the memory.
  explicit KvCache(KvMemory& memory);

  std::int64_t block_tokens() const noexcept { return memory_.block_tokens(); }
  std::int64_t blocks_for(std::int64_t tokens) const noexcept { return (tokens + block_tokens() - 1) / block_tokens(); }
  std::int64_t total_blocks() const noexcept { return memory_.blocks(); }
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

  // Who follows what is remembered (prefix_index.h).
  void record(std::vector<PrefixChange>* journal) noexcept { index_.record(journal); }
  std::vector<PrefixChange> content() const { return index_.content(); }

 private:
  std::int32_t take();  // one with room to be had
  void hold(std::int32_t block);
  void drop(std::int32_t block);  // the index has let go of it

  struct Block {
    std::int32_t holders = 0;
    bool remembered = false;
    std::list<std::int32_t>::iterator idle;  // its place in idle_, while it is remembered and nobody holds it
  };
  KvMemory& memory_;
  std::vector<Block> states_;
  std::vector<std::int32_t> free_;  // zero, taken from the back
  std::list<std::int32_t> idle_;    // held longest ago first
  PrefixIndex index_;
};

}  // namespace engine
