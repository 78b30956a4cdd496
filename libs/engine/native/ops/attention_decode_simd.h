// attention_decode_simd.h: the row kernels of attention_decode_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/attention_decode_rows.h"
#include "ops/simd.h"
#include "ops/transpose_simd.h"

namespace engine {
namespace {

// Lanes i … of a cached vector of n elements.
template <Dtype dtype>
inline Vec load_cached(const void* data, std::int64_t i, std::int64_t n) {
  if constexpr (dtype == Dtype::f32) {
    return load_up_to(static_cast<const float*>(data), i, n);
  } else {
    const auto* p = static_cast<const std::uint8_t*>(data) + 2 * i;
    if (n - i >= kLanes) return load_bf16(p);
    alignas(64) std::uint8_t last[2 * kLanes] = {};
    __builtin_memcpy(last, p, static_cast<std::size_t>(2 * (n - i)));
    return load_bf16(last);
  }
}

// The products of q with one key, in lanes still to be summed.
template <Dtype dtype>
inline Vec key_lanes(const float* q, const void* key, std::int64_t d) {
  Vec even = broadcast(0), odd = broadcast(0);
  std::int64_t c = 0;
  for (; c + kLanes < d; c += 2 * kLanes) {
    even = fma(load_up_to(q, c, d), load_cached<dtype>(key, c, d), even);
    odd = fma(load_up_to(q, c + kLanes, d), load_cached<dtype>(key, c + kLanes, d), odd);
  }
  if (c < d) even = fma(load_up_to(q, c, d), load_cached<dtype>(key, c, d), even);
  return even + odd;
}

// A vector's worth of keys shares one transpose to sum their lanes; the rest are summed one by one.
template <Dtype dtype>
void scores_of(const float* q, const void* keys, std::int64_t count, std::int64_t d, float scale, float* s) {
  constexpr std::int64_t kBytes = dtype == Dtype::f32 ? 4 : 2;
  const auto* bytes = static_cast<const std::uint8_t*>(keys);
  std::int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Register lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = key_lanes<dtype>(q, bytes + (j + i) * d * kBytes, d).v;
    transpose(lanes);
    for (int width = static_cast<int>(kLanes) / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] = (Vec{lanes[i]} + Vec{lanes[i + width]}).v;
    store(s + j, broadcast(scale) * Vec{lanes[0]});
  }
  for (; j < count; ++j) s[j] = scale * sum(key_lanes<dtype>(q, bytes + j * d * kBytes, d));
}

void decode_scores(const float* q, Dtype dtype, const void* keys, std::int64_t count, std::int64_t d, float scale, float* s) {
  if (dtype == Dtype::f32)
    scores_of<Dtype::f32>(q, keys, count, d, scale, s);
  else
    scores_of<Dtype::bf16>(q, keys, count, d, scale, s);
}

void decode_softcap(float* s, std::int64_t n, float softcap) {
  const Vec cap = broadcast(softcap), inverse = broadcast(1.0f / softcap);
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(s, cap * tanh(load_up_to(s, i, n) * inverse), i, n);
}

float decode_softmax(float* s, std::int64_t n) {
  const Vec lowest = broadcast(-__builtin_inff());
  Vec highest = lowest;
  for (std::int64_t i = 0; i < n; i += kLanes) highest = max(highest, n - i >= kLanes ? load(s + i) : keep_first(load_first(s + i, n - i), lowest, n - i));
  const Vec shift = broadcast(largest(highest));
  Vec total = broadcast(0);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    Vec p = exp(load_up_to(s, i, n) - shift);
    if (n - i < kLanes) p = keep_first(p, broadcast(0), n - i);
    store_up_to(s, p, i, n);
    total = total + p;
  }
  return sum(total);
}

template <Dtype dtype>
void add_values_of(const float* p, const void* values, std::int64_t count, std::int64_t d, float* out) {
  constexpr std::int64_t kBytes = dtype == Dtype::f32 ? 4 : 2;
  for (std::int64_t c = 0; c < d; c += kLanes) {
    Vec total = load_up_to(out, c, d);
    for (std::int64_t j = 0; j < count; ++j)
      total = fma(broadcast(p[j]), load_cached<dtype>(static_cast<const std::uint8_t*>(values) + j * d * kBytes, c, d), total);
    store_up_to(out, total, c, d);
  }
}

void decode_add_values(const float* p, Dtype dtype, const void* values, std::int64_t count, std::int64_t d, float* out) {
  if (dtype == Dtype::f32)
    add_values_of<Dtype::f32>(p, values, count, d, out);
  else
    add_values_of<Dtype::bf16>(p, values, count, d, out);
}

}  // namespace
}  // namespace engine
