#include "infer/prefix_index.h"

#include <algorithm>

namespace engine {

PrefixIndex::NodeId PrefixIndex::child_with(const Node& parent, std::span<const std::uint32_t> tokens) const {
  for (const NodeId id : parent.children)
    if (std::ranges::equal(nodes_.at(id).tokens, tokens)) return id;
  return 0;
}

PrefixIndex::Match PrefixIndex::find(const PrefixScope& scope, std::span<const std::uint32_t> tokens) const {
  Match match;
  const auto root = roots_.find(scope);
  if (root == roots_.end()) return match;
  const auto block = static_cast<std::size_t>(block_tokens_);
  const Node* node = &nodes_.at(root->second);
  while (tokens.size() >= block) {
    const NodeId child = child_with(*node, tokens.first(block));
    if (child == 0) break;
    node = &nodes_.at(child);
    match.blocks.push_back(node->block);
    tokens = tokens.subspan(block);
  }
  for (const NodeId id : node->children) {
    const Node& child = nodes_.at(id);
    const auto same = std::ranges::mismatch(child.tokens, tokens).in1 - child.tokens.begin();
    if (same <= match.partial_tokens) continue;
    match.partial = child.block;
    match.partial_tokens = same;
  }
  return match;
}

void PrefixIndex::insert(const PrefixScope& scope, std::span<const std::uint32_t> tokens, std::span<const std::int32_t> blocks, bool partial,
                         const std::function<void(std::int32_t)>& added) {
  const auto whole = tokens.size() / static_cast<std::size_t>(block_tokens_);
  const std::size_t count = whole + (partial && tokens.size() % static_cast<std::size_t>(block_tokens_) != 0 ? 1 : 0);
  if (count == 0) return;
  auto [root, fresh] = roots_.try_emplace(scope, next_id_);
  if (fresh) {
    nodes_[next_id_].scope = scope;
    ++next_id_;
  }
  NodeId at = root->second;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t first = i * static_cast<std::size_t>(block_tokens_);
    const auto own = tokens.subspan(first, std::min(static_cast<std::size_t>(block_tokens_), tokens.size() - first));
    NodeId child = child_with(nodes_.at(at), own);
    if (child == 0) {
      // A block is known by one place only: one that was found here and then went on elsewhere stays where it is.
      if (node_of_.contains(blocks[i])) break;
      child = next_id_++;
      Node& node = nodes_[child];
      node.parent = at;
      node.block = blocks[i];
      node.tokens.assign(own.begin(), own.end());
      nodes_.at(at).children.push_back(child);
      node_of_.emplace(blocks[i], child);
      added(blocks[i]);
      if (journal_ != nullptr) journal_->push_back(stored(child, scope));
    }
    at = child;
  }
  if (const NodeId id = root->second; nodes_.at(id).children.empty()) {
    nodes_.erase(id);
    roots_.erase(root);
  }
}

PrefixChange PrefixIndex::stored(NodeId id, const PrefixScope& scope) const {
  const Node& node = nodes_.at(id);
  const bool begins = nodes_.at(node.parent).parent == 0;  // below a root
  return {.stored = true, .node = id, .parent = begins ? 0 : node.parent, .scope = scope, .tokens = node.tokens};
}

std::vector<PrefixChange> PrefixIndex::content() const {
  std::vector<PrefixChange> all;
  for (const auto& [scope, root] : roots_) {
    std::vector<NodeId> open = nodes_.at(root).children;
    while (!open.empty()) {
      const NodeId id = open.back();
      open.pop_back();
      all.push_back(stored(id, scope));
      const std::vector<NodeId>& children = nodes_.at(id).children;
      open.insert(open.end(), children.begin(), children.end());
    }
  }
  return all;
}

void PrefixIndex::erase_node(NodeId id, const std::function<void(std::int32_t)>& removed) {
  const Node node = std::move(nodes_.at(id));
  nodes_.erase(id);
  for (const NodeId child : node.children) erase_node(child, removed);
  node_of_.erase(node.block);
  removed(node.block);
  if (journal_ != nullptr) journal_->push_back({.stored = false, .node = id});
}

void PrefixIndex::erase(std::int32_t block, const std::function<void(std::int32_t)>& removed) {
  const auto found = node_of_.find(block);
  if (found == node_of_.end()) return;
  const NodeId id = found->second, parent = nodes_.at(id).parent;
  erase_node(id, removed);
  Node& above = nodes_.at(parent);
  std::erase(above.children, id);
  if (above.parent == 0 && above.children.empty()) {  // an empty root
    roots_.erase(above.scope);
    nodes_.erase(parent);
  }
}

}  // namespace engine
