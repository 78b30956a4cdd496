#include "ops/torch_sum.h"

#include <algorithm>
#include <array>
#include <bit>

namespace engine {
namespace {

constexpr int kLanes = 8, kRows = 4, kLevels = 4;
using Vectors = std::array<float, kRows * kLanes>;  // kRows vectors side by side, as they lie in memory

void add(Vectors& into, const float* values) {
  for (int i = 0; i < kRows * kLanes; ++i) into[static_cast<std::size_t>(i)] += values[i];
}

// Sums `steps` groups of kRows vectors: level 0 takes values, and every 2^power steps hands its sum one level up.
Vectors cascade(const float* values, std::int64_t steps) {
  const int log = steps <= 1 ? 0 : std::bit_width(static_cast<std::uint64_t>(steps - 1));
  const int power = std::max(4, log / kLevels);
  const std::int64_t step = std::int64_t{1} << power, mask = step - 1;
  std::array<Vectors, kLevels> level{};
  std::int64_t i = 0;
  while (i + step <= steps) {
    for (const std::int64_t end = i + step; i < end; ++i) add(level[0], values + i * kRows * kLanes);
    for (std::size_t j = 1; j < kLevels; ++j) {
      add(level[j], level[j - 1].data());
      level[j - 1] = {};
      if ((i & (mask << (j * static_cast<std::size_t>(power)))) != 0) break;
    }
  }
  for (; i < steps; ++i) add(level[0], values + i * kRows * kLanes);
  for (std::size_t j = 1; j < kLevels; ++j) add(level[0], level[j].data());
  return level[0];
}

}  // namespace

float torch_sum(const float* values, std::int64_t n) {
  if (n < kLanes) {  // too short for a vector: torch keeps four scalars in flight instead
    std::array<float, kRows> sums{};
    const std::int64_t whole = n / kRows * kRows;
    for (std::int64_t i = 0; i < n; ++i) sums[static_cast<std::size_t>(i < whole ? i % kRows : 0)] += values[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
  }
  const std::int64_t vectors = n / kLanes, steps = vectors / kRows;
  Vectors sums = cascade(values, steps);
  for (std::int64_t v = steps * kRows; v < vectors; ++v)
    for (int lane = 0; lane < kLanes; ++lane) sums[static_cast<std::size_t>(lane)] += values[v * kLanes + lane];
  for (int row = 1; row < kRows; ++row)
    for (int lane = 0; lane < kLanes; ++lane) sums[static_cast<std::size_t>(lane)] += sums[static_cast<std::size_t>(row * kLanes + lane)];
  float total = 0;
  for (std::int64_t i = vectors * kLanes; i < n; ++i) total += values[i];
  for (int lane = 0; lane < kLanes; ++lane) total += sums[static_cast<std::size_t>(lane)];
  return total;
}

}  // namespace engine
