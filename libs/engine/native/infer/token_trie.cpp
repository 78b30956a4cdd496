#include "infer/token_trie.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace engine {

TokenTrie::TokenTrie(std::span<const std::uint8_t> bytes, std::span<const std::uint32_t> offsets) : bytes_(bytes.begin(), bytes.end()), offsets_(offsets.begin(), offsets.end()) {
  require(offsets_.size() >= 2 && offsets_.front() == 0 && offsets_.back() == bytes_.size() && std::ranges::is_sorted(offsets_),
          "the vocabulary's offsets do not ascend from 0 to its ", bytes_.size(), " bytes");
  tokens_ = static_cast<std::int64_t>(offsets_.size()) - 1;
  std::vector<std::uint32_t> order;
  for (std::uint32_t token = 0; token < tokens_; ++token) {
    const auto length = static_cast<std::uint32_t>(bytes_of(token).size());
    require(length <= kMaxTokenBytes, "token ", token, " has ", length, " bytes; at most ", kMaxTokenBytes, " are possible");
    longest_ = std::max(longest_, length);
    if (length > 0) order.push_back(token);
  }
  std::ranges::stable_sort(order, [this](std::uint32_t a, std::uint32_t b) { return std::ranges::lexicographical_compare(bytes_of(a), bytes_of(b)); });

  std::vector<std::uint32_t> path;  // nodes from the root to the last token's end
  const auto close_to = [&](std::size_t depth) {
    while (path.size() > depth) {
      nodes_[path.back()].end = static_cast<std::uint32_t>(nodes_.size());
      path.pop_back();
    }
  };
  std::span<const std::uint8_t> previous;
  for (const std::uint32_t token : order) {
    const auto spelling = bytes_of(token);
    const auto common = static_cast<std::size_t>(std::ranges::mismatch(previous, spelling).in2 - spelling.begin());
    close_to(common);
    for (std::size_t depth = common; depth < spelling.size(); ++depth) {
      const auto at = static_cast<std::uint32_t>(spellings_.size());
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({spelling[depth], static_cast<std::uint32_t>(depth), 0, at, at});
    }
    spellings_.push_back(token);
    nodes_[path.back()].last = static_cast<std::uint32_t>(spellings_.size());
    previous = spelling;
  }
  close_to(0);
}

std::span<const std::uint8_t> TokenTrie::bytes_of(std::uint32_t token) const {
  if (token >= tokens_) return {};
  return std::span(bytes_).subspan(offsets_[token], offsets_[token + 1] - offsets_[token]);
}

}  // namespace engine
