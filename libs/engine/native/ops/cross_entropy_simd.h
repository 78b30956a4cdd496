// cross_entropy_simd.h: the row kernels of cross_entropy_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/cross_entropy_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

struct Cap {
  bool on;
  Vec softcap, inverse;
  explicit Cap(float c) : on(c > 0), softcap(broadcast(c)), inverse(broadcast(on ? 1.0f / c : 0.0f)) {}
  Vec operator()(Vec x) const { return on ? softcap * tanh(x * inverse) : x; }
  Vec slope(Vec capped) const {
    const Vec t = capped * inverse;
    return negated_fma(t, t, broadcast(1.0f));
  }
};

float log_sum_exp_row(const float* logits, std::int64_t n, float softcap) {
  const Cap cap(softcap);
  const Vec lowest = broadcast(-__builtin_inff());
  Vec highest = lowest;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) highest = max(highest, cap(load(logits + i)));
  if (i < n) highest = max(highest, keep_first(cap(load_first(logits + i, n - i)), lowest, n - i));
  const float peak = largest(highest);
  const Vec shift = broadcast(peak);
  // fp32 lanes over pieces of 4096, pieces in fp64: 150,000 terms lose no more than a few hundred would.
  constexpr std::int64_t kPiece = 4096;
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kPiece) {
    const std::int64_t end = n - begin < kPiece ? n : begin + kPiece;
    Vec even = broadcast(0), odd = broadcast(0);
    for (i = begin; i + 2 * kLanes <= end; i += 2 * kLanes) {
      even = even + exp(cap(load(logits + i)) - shift);
      odd = odd + exp(cap(load(logits + i + kLanes)) - shift);
    }
    for (; i + kLanes <= end; i += kLanes) even = even + exp(cap(load(logits + i)) - shift);
    if (i < end) even = even + keep_first(exp(cap(load_first(logits + i, end - i)) - shift), broadcast(0), end - i);
    total += static_cast<double>(sum(even + odd));
  }
  return static_cast<float>(static_cast<double>(peak) + __builtin_log(total));
}

void gradient_values(float* logits, std::int64_t n, float lse, float weight, float softcap) {
  const Cap cap(softcap);
  const Vec shift = broadcast(lse), w = broadcast(weight);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec z = cap(load_up_to(logits, i, n));
    Vec gradient = w * exp(z - shift);
    if (cap.on) gradient = gradient * cap.slope(z);
    store_up_to(logits, gradient, i, n);
  }
}

void softcap_values(float* logits, std::int64_t n, float softcap) {
  const Cap cap(softcap);
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(logits, cap(load_up_to(logits, i, n)), i, n);
}

}  // namespace
}  // namespace engine
