// attention_simd.h: the row kernels of attention_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/attention_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

// Calls body(column, lanes in use) for the vectors of [first, last).
template <class Body>
inline void for_columns(std::int64_t first, std::int64_t last, Body body) {
  for (std::int64_t i = first; i < last; i += kLanes) body(i, last - i < kLanes ? last - i : kLanes);
}

inline void clear(float* s, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) s[i] = 0.0f;
}

inline Vec capped(Vec s, float softcap) { return broadcast(softcap) * tanh(s * broadcast(1.0f / softcap)); }

float attention_probabilities(float* s, std::int64_t width, std::int64_t first, std::int64_t last, float softcap, RunningSoftmax* running) {
  if (first >= last) {
    clear(s, 0, width);
    return 1.0f;
  }
  clear(s, 0, first);
  clear(s, last, width);
  const Vec lowest = broadcast(-__builtin_inff());
  Vec highest = lowest;
  for_columns(first, last, [&](std::int64_t i, std::int64_t n) {
    Vec x = load_first(s + i, n);
    if (softcap > 0) {
      x = capped(x, softcap);
      store_first(s + i, x, n);
    }
    highest = max(highest, keep_first(x, lowest, n));
  });
  const float before = running->largest, block = largest(highest), peak = block > before ? block : before;
  const Vec shift = broadcast(peak);
  Vec total = broadcast(0);
  for_columns(first, last, [&](std::int64_t i, std::int64_t n) {
    const Vec p = keep_first(exp(load_first(s + i, n) - shift), broadcast(0), n);
    store_first(s + i, p, n);
    total = total + p;
  });
  if (peak == before) {
    running->sum += sum(total);
    return 1.0f;
  }
  alignas(64) float lanes[kLanes];
  store(lanes, exp(broadcast(before) - shift));  // 0 for the first block, where `before` is -infinity
  running->largest = peak;
  running->sum = running->sum * lanes[0] + sum(total);
  return lanes[0];
}

void attention_gradients(float* s, float* dp, std::int64_t width, std::int64_t first, std::int64_t last, float softcap, float lse, float delta,
                         float scale) {
  if (first >= last) first = last = width;
  clear(s, 0, first);
  clear(s, last, width);
  clear(dp, 0, first);
  clear(dp, last, width);
  const Vec shift = broadcast(lse), d = broadcast(delta), factor = broadcast(scale);
  for_columns(first, last, [&](std::int64_t i, std::int64_t n) {
    Vec z = load_first(s + i, n);
    if (softcap > 0) z = capped(z, softcap);
    const Vec p = exp(z - shift);
    Vec ds = p * (load_first(dp + i, n) - d) * factor;
    if (softcap > 0) {
      const Vec t = z * broadcast(1.0f / softcap);
      ds = ds * negated_fma(t, t, broadcast(1.0f));
    }
    store_first(s + i, p, n);
    store_first(dp + i, ds, n);
  });
}

float attention_dot(const float* a, const float* b, std::int64_t n) {
  Vec total = broadcast(0);
  for (std::int64_t i = 0; i < n; i += kLanes) total = fma(load_up_to(a, i, n), load_up_to(b, i, n), total);
  return sum(total);
}

}  // namespace
}  // namespace engine
