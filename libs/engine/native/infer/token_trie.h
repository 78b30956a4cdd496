// token_trie.h: the bytes behind every token of a vocabulary, as a prefix tree in depth-first order, so that an automaton over bytes meets each
// common beginning once and leaves a subtree in one step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace engine {

class TokenTrie {
 public:
  // Token t is bytes[offsets[t], offsets[t + 1]); a token without bytes (special, unused) is in no path. Throws invalid when the offsets do not
  // ascend from 0 to the end of `bytes`, or a token is longer than kMaxTokenBytes.
  TokenTrie(std::span<const std::uint8_t> bytes, std::span<const std::uint32_t> offsets);

  static constexpr std::uint32_t kMaxTokenBytes = 4096;

  struct Node {
    std::uint8_t byte = 0;
    std::uint32_t depth = 0;           // bytes before this one
    std::uint32_t end = 0;             // index of the first node that is not below this one
    std::uint32_t first = 0, last = 0; // spellings [first, last) of tokens that end here
  };
  std::span<const Node> nodes() const noexcept { return nodes_; }
  std::span<const std::uint32_t> spellings() const noexcept { return spellings_; }  // token ids, by the node they end at
  std::int64_t tokens() const noexcept { return tokens_; }                          // vocabulary size, unused ids included
  std::uint32_t longest() const noexcept { return longest_; }                       // bytes of the longest token
  std::span<const std::uint8_t> bytes_of(std::uint32_t token) const;                // empty for ids beyond the vocabulary

 private:
  std::vector<std::uint8_t> bytes_;
  std::vector<std::uint32_t> offsets_;
  std::vector<Node> nodes_;
  std::vector<std::uint32_t> spellings_;
  std::int64_t tokens_ = 0;
  std::uint32_t longest_ = 0;
};

}  // namespace engine
