// decode_simd.h: the row kernels of decode_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/decode_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

// The last, shorter piece of a run of 16-bit values, by way of a full vector on the stack.
template <Vec (*widen)(const void*)>
void widen_16(const void* src, std::int64_t n, float* out) {
  const auto* in = static_cast<const std::uint8_t*>(src);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, widen(in + 2 * i));
  if (i == n) return;
  alignas(64) std::uint8_t last[2 * kLanes] = {};
  __builtin_memcpy(last, in + 2 * i, static_cast<std::size_t>(2 * (n - i)));
  store_first(out + i, widen(last), n - i);
}

void round_bf16_row(const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(out, round_bf16(load_up_to(x, i, n)), i, n);
}

}  // namespace
}  // namespace engine
