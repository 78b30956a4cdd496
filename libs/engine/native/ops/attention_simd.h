// attention_simd.h: the kernels of attention_rows.h in vectors of fp32 lanes.
//   Every row of a block runs over the same number of vectors, unseen keys masked, so that branches are predicted and rows overlap.
#pragma once

#include "ops/attention_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

struct Seen {
  std::int64_t first, last;
};

inline Seen seen_by(const ScoreBlock& block, std::int64_t row) {
  const std::int64_t end = block.diagonal + row + 1, last = end < block.width ? end : block.width;
  const std::int64_t start = block.window > 0 ? end - block.window : 0;
  return {start > 0 ? start : 0, last};
}

inline Vec capped(Vec s, float softcap) { return broadcast(softcap) * tanh(s * broadcast(1.0f / softcap)); }

void attention_probabilities(const ScoreBlock& block, float* s, RunningSoftmax* running, float* rescale) {
  const Vec lowest = broadcast(-__builtin_inff()), zero = broadcast(0);
  for (std::int64_t r = 0; r < block.rows; ++r, s += block.stride) {
    const Seen seen = seen_by(block, r);
    if (seen.first >= seen.last) {
      for (std::int64_t i = 0; i < block.width; i += kLanes) store(s + i, zero);
      rescale[r] = 1.0f;
      continue;
    }
    Vec highest = lowest;
    for (std::int64_t i = 0; i < block.width; i += kLanes) {
      Vec x = load(s + i);
      if (block.softcap > 0) x = capped(x, block.softcap);
      x = select(between(i, seen.first, seen.last), x, lowest);
      store(s + i, x);
      highest = max(highest, x);
    }
    const float before = running[r].largest, here = largest(highest), peak = here > before ? here : before;
    const Vec shift = broadcast(peak);
    Vec total = zero;
    for (std::int64_t i = 0; i < block.width; i += kLanes) {
      const Vec p = exp(load(s + i) - shift);  // exp(-infinity) is 0
      store(s + i, p);
      total = total + p;
    }
    // exp(before - peak): 0 for the first keys, where `before` is -infinity, and 1 when the peak stays.
    const float factor = first_lane(exp(broadcast(before) - shift));
    running[r] = {peak, running[r].sum * factor + sum(total)};
    rescale[r] = factor;
  }
}

void attention_gradients(const ScoreBlock& block, float* s, float* dp, const float* lse, const float* delta, float scale) {
  const Vec factor = broadcast(scale), zero = broadcast(0), one = broadcast(1.0f);
  for (std::int64_t r = 0; r < block.rows; ++r, s += block.stride, dp += block.stride) {
    const Seen seen = seen_by(block, r);
    const Vec shift = broadcast(lse[r]), d = broadcast(delta[r]);
    for (std::int64_t i = 0; i < block.width; i += kLanes) {
      const Mask mask = between(i, seen.first, seen.last);
      Vec z = load(s + i);
      if (block.softcap > 0) z = capped(z, block.softcap);
      const Vec p = select(mask, exp(z - shift), zero);
      Vec ds = p * (load(dp + i) - d) * factor;
      if (block.softcap > 0) {
        const Vec t = z * broadcast(1.0f / block.softcap);
        ds = ds * negated_fma(t, t, one);
      }
      store(s + i, p);
      store(dp + i, select(mask, ds, zero));
    }
  }
}

float attention_dot(const float* a, const float* b, std::int64_t n) {
  Vec total = broadcast(0);
  for (std::int64_t i = 0; i < n; i += kLanes) total = fma(load_up_to(a, i, n), load_up_to(b, i, n), total);
  return sum(total);
}

}  // namespace
}  // namespace engine
