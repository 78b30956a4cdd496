// prefix_index.h: which cache blocks hold which beginnings of sequences, so that a sequence that begins alike need not be read again.
//   A tree for each scope: a node is one block, the path to it the tokens before. A scope stands for everything else that keys and values depend on
//   (base, adapter, template) and for the tenant, whose blocks no other tenant may find. Tokens are compared, not hashed: two beginnings are the same
//   or they are not. Knows tokens and block numbers, nothing of memory.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

namespace engine {

using PrefixScope = std::array<std::uint8_t, 32>;

// A block became findable, or is not any more. A node is a block's place in the index: it means the same tokens after the same others for as long as it is
// there, and its number is never used again.
struct PrefixChange {
  bool stored = false;
  std::uint64_t node = 0;
  // Of a stored one: the node of the block before it, 0 where it begins a text; whose it is; what it holds.
  std::uint64_t parent = 0;
  PrefixScope scope{};
  std::vector<std::uint32_t> tokens{};
};

class PrefixIndex {
 public:
  explicit PrefixIndex(std::int64_t block_tokens) : block_tokens_(block_tokens) {}

  struct Match {
    std::vector<std::int32_t> blocks;  // whole ones, from the beginning
    std::int32_t partial = -1;         // the block that goes on longest with what follows, or -1
    std::int64_t partial_tokens = 0;   // of it, tokens that are the same
  };
  Match find(const PrefixScope& scope, std::span<const std::uint32_t> tokens) const;

  // Makes `blocks`, which hold `tokens`, findable: the whole ones, and with `partial` also the last, which must not change any more. Where the same
  // tokens are known in another block, that one stays. Calls `added` for each block that became known.
  void insert(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::span<const std::int32_t> blocks, bool partial,
              const std::function<void(std::int32_t)>& added);

  // From now on every change is appended to the journal, in order; null: nobody follows.
  void record(std::vector<PrefixChange>* journal) noexcept { journal_ = journal; }
  // All that can be found now, as if it were stored now: every block after the one before it.
  std::vector<PrefixChange> content() const;

  // Forgets the block and all that follow it. Calls `removed` for each; an unknown block is ignored.
  void erase(std::int32_t block, const std::function<void(std::int32_t)>& removed);

 private:
  using NodeId = std::uint64_t;
  struct Node {
    NodeId parent = 0;
    PrefixScope scope{};  // of a root
    std::int32_t block = -1;
    std::vector<std::uint32_t> tokens;  // of this block; fewer than a whole block's only in a leaf
    std::vector<NodeId> children;
  };
  NodeId child_with(const Node& parent, std::span<const std::uint32_t> tokens) const;  // 0: none
  PrefixChange stored(NodeId id, const PrefixScope& scope) const;
  void erase_node(NodeId id, const std::function<void(std::int32_t)>& removed);

  std::int64_t block_tokens_;
  std::vector<PrefixChange>* journal_ = nullptr;
  NodeId next_id_ = 1;
  std::map<PrefixScope, NodeId> roots_;
  std::unordered_map<NodeId, Node> nodes_;
  std::unordered_map<std::int32_t, NodeId> node_of_;  // block → node
};

}  // namespace engine
