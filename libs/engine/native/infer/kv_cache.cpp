#include "infer/kv_cache.h"

namespace engine {

KvCache::KvCache(KvMemory& memory) : memory_(memory), states_(static_cast<std::size_t>(memory.blocks())), index_(memory.block_tokens()) {
  for (std::int64_t block = memory.blocks() - 1; block >= 0; --block) free_.push_back(static_cast<std::int32_t>(block));
}

void KvCache::drop(std::int32_t block) {
  Block& state = states_[static_cast<std::size_t>(block)];
  state.remembered = false;
  if (state.holders > 0) return;
  idle_.erase(state.idle);
  memory_.zero({&block, 1});
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
  std::vector<std::int32_t> forgotten;
  for (; !table.empty(); table.pop_back()) {
    const std::int32_t block = table.back();
    Block& state = states_[static_cast<std::size_t>(block)];
    if (--state.holders > 0) continue;
    if (state.remembered) {
      state.idle = idle_.insert(idle_.end(), block);
    } else {
      forgotten.push_back(block);
      free_.push_back(block);
    }
  }
  memory_.zero(forgotten);
}

std::int64_t KvCache::reuse(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::vector<std::int32_t>& table) {
  const PrefixIndex::Match match = index_.find(scope, tokens);
  for (const std::int32_t block : match.blocks) {
    hold(block);
    table.push_back(block);
  }
  const std::int64_t whole = static_cast<std::int64_t>(match.blocks.size()) * block_tokens();
  if (match.partial < 0) return whole;
  hold(match.partial);  // not to be evicted for its own copy
  std::int64_t copied = 0;
  if (free_blocks() > 0) {
    const std::int32_t own = take();
    memory_.copy(own, match.partial);
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

}  // namespace engine
