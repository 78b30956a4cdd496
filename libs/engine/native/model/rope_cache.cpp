#include "model/rope_cache.h"

#include <algorithm>
#include <cmath>

namespace engine {

RopeCache::RopeCache(std::vector<RopeParameters> ropes) {
  for (RopeParameters& parameters : ropes) entries_.push_back({parameters, {}, {}, false});
}

void RopeCache::prepare(std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths) {
  positions_ = positions.data();
  if (positions.empty()) return;
  const std::int64_t needed = std::int64_t{*std::ranges::max_element(positions)} + 1;
  const std::int64_t longest = *std::ranges::max_element(lengths);
  for (Entry& entry : entries_) {
    entry.use_per_row = entry.parameters.type == RopeType::dynamic && longest > entry.parameters.original_context;
    if (entry.use_per_row) {
      rotate_each_row(entry, positions, lengths);
      if (row_numbers_.size() < positions.size()) {
        row_numbers_.resize(positions.size());
        for (std::size_t i = 0; i < row_numbers_.size(); ++i) row_numbers_[i] = static_cast<std::int32_t>(i);
      }
    } else if (entry.table.count < needed) {
      // Doubling keeps a growing generation from rebuilding the table at every token.
      entry.table = make_rope_table(rope_frequencies(entry.parameters, 1), std::max(needed, std::max<std::int64_t>(256, 2 * entry.table.count)));
    }
  }
}

void RopeCache::rotate_each_row(Entry& entry, std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths) {
  const auto half = static_cast<std::size_t>(entry.parameters.rotary_dim / 2);
  RopeTable& table = entry.per_row;
  table.rotary_dim = entry.parameters.rotary_dim;
  table.count = static_cast<std::int64_t>(positions.size());
  table.cos.resize(positions.size() * half);
  table.sin.resize(positions.size() * half);
  RopeFrequencies frequencies;
  for (std::size_t row = 0; row < positions.size(); ++row) {
    if (row == 0 || lengths[row] != lengths[row - 1]) frequencies = rope_frequencies(entry.parameters, lengths[row]);
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[row]) * frequencies.inverse[i];
      table.cos[row * half + i] = static_cast<float>(std::cos(double{angle})) * frequencies.attention_factor;
      table.sin[row * half + i] = static_cast<float>(std::sin(double{angle})) * frequencies.attention_factor;
    }
  }
}

Rotation RopeCache::at(int rope) const {
  const Entry& entry = entries_.at(static_cast<std::size_t>(rope));
  if (entry.use_per_row) return {&entry.per_row, row_numbers_.data()};
  return {&entry.table, positions_};
}

}  // namespace engine
