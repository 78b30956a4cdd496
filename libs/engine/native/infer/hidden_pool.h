// hidden_pool.h: one vector from the hidden states of a sequence.   Sums are fp64 and in the order of the tokens: however these were divided into steps,
//   the vector is the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace engine {

enum class Pooling : std::uint8_t {
  none,
  mean,  // of all tokens
  last,  // the last token's
};

class HiddenPool {
 public:
  HiddenPool() = default;
  explicit HiddenPool(Pooling pooling) : pooling_(pooling) {}

  Pooling pooling() const noexcept { return pooling_; }
  // One token's state [hidden], after those of all tokens before it; with `last` only the last one's counts.
  void add(std::span<const float> state) {
    if (pooling_ == Pooling::last || count_ == 0) {
      sums_.assign(state.begin(), state.end());
      count_ = 1;
      return;
    }
    for (std::size_t i = 0; i < state.size(); ++i) sums_[i] += double{state[i]};
    ++count_;
  }
  // The sequence begins anew.
  void clear() noexcept { count_ = 0; }
  // [hidden]; at least one state must have been added.
  std::vector<float> vector() const {
    std::vector<float> pooled(sums_.size());
    for (std::size_t i = 0; i < sums_.size(); ++i) pooled[i] = static_cast<float>(sums_[i] / static_cast<double>(count_));
    return pooled;
  }

 private:
  Pooling pooling_ = Pooling::none;
  std::vector<double> sums_;
  std::int64_t count_ = 0;
};

}  // namespace engine
