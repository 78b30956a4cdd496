// rmsnorm_simd.h: the row kernels of rmsnorm_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/rmsnorm_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

float rmsnorm_forward_row(const float* x, const float* w, float offset, float eps, std::int64_t n, float* y) {
  Vec even = broadcast(0), odd = broadcast(0);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec a = load(x + i), b = load(x + i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < n; i += kLanes) {
    const Vec a = load_up_to(x, i, n);
    even = fma(a, a, even);
  }
  const double mean = static_cast<double>(sum(even + odd)) / static_cast<double>(n);
  const auto rstd = static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(eps)));
  const Vec r = broadcast(rstd), shift = broadcast(offset);
  for (i = 0; i < n; i += kLanes) store_up_to(y, load_up_to(x, i, n) * r * (load_up_to(w, i, n) + shift), i, n);
  return rstd;
}

void rmsnorm_backward_row(const float* x, const float* w, float offset, float rstd, const float* dy, std::int64_t n, float* dx, bool accumulate) {
  const Vec shift = broadcast(offset);
  Vec dot = broadcast(0);
  for (std::int64_t i = 0; i < n; i += kLanes) dot = fma(load_up_to(dy, i, n) * (load_up_to(w, i, n) + shift), load_up_to(x, i, n), dot);
  const double scaled = static_cast<double>(rstd) * static_cast<double>(rstd) * static_cast<double>(sum(dot)) / static_cast<double>(n);
  const Vec correction = broadcast(static_cast<float>(scaled)), r = broadcast(rstd);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec weighted = load_up_to(dy, i, n) * (load_up_to(w, i, n) + shift);
    Vec gradient = r * negated_fma(load_up_to(x, i, n), correction, weighted);
    if (accumulate) gradient = gradient + load_up_to(dx, i, n);
    store_up_to(dx, gradient, i, n);
  }
}

void rmsnorm_weight_row(const float* x, float rstd, const float* dy, std::int64_t n, float* dw) {
  const Vec r = broadcast(rstd);
  for (std::int64_t i = 0; i < n; i += kLanes)
    store_up_to(dw, fma(load_up_to(dy, i, n), load_up_to(x, i, n) * r, load_up_to(dw, i, n)), i, n);
}

}  // namespace
}  // namespace engine
