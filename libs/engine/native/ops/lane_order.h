// lane_order.h: an order of summation that a product of few rows (linear_vector.h) and of many (gemm_blocked.h) can share at full speed.
//   Of few rows, weights are read along k into L vector lanes; of many, panels are summed step by step along their depth. So, for L lanes:
//   k is cut into sweeps of 128·L. In a sweep, the k with (k mod 2L) / 2 = i form chain i, summed in rising order by multiply-adds from 0.
//   A result is what it is added to, plus chain 0, 1, … L - 1 of the first sweep, of the second, …, one rounded addition each.
//   (Pairs, not single values, lie in a lane: a byte holds two NF4 codes and a 32-bit word two bf16.)
#pragma once

#include <cstdint>

namespace engine {

// Depths of one sweep.
constexpr std::int64_t lane_sweep(std::int64_t lanes) noexcept { return 128 * lanes; }
// Length of each chain of a sweep of `depth`, zeros at the end included.
constexpr std::int64_t lane_chain(std::int64_t depth, std::int64_t lanes) noexcept { return (depth + 2 * lanes - 1) / (2 * lanes) * 2; }

}  // namespace engine
