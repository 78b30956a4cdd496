// attention_decode_simd.h: the row kernels of attention_decode_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/attention_decode_rows.h"
#include "ops/simd.h"
#include "ops/transpose_simd.h"

namespace engine {
namespace {

// The products of q with `keys` keys, d floats apart, in lanes still to be summed. Several keys share the loads of q.
template <int keys>
inline void key_lanes(const float* q, const float* key, std::int64_t d, Register* out) {
  Vec even[keys], odd[keys];
  for (int k = 0; k < keys; ++k) even[k] = odd[k] = broadcast(0);
  std::int64_t c = 0;
  for (; c + 2 * kLanes <= d; c += 2 * kLanes) {
    const Vec x = load(q + c), y = load(q + c + kLanes);
    for (int k = 0; k < keys; ++k) {
      even[k] = fma(x, load(key + k * d + c), even[k]);
      odd[k] = fma(y, load(key + k * d + c + kLanes), odd[k]);
    }
  }
  for (int k = 0; k < keys; ++k) {
    if (c < d) even[k] = fma(load_up_to(q, c, d), load_up_to(key + k * d, c, d), even[k]);
    if (c + kLanes < d) odd[k] = fma(load_up_to(q, c + kLanes, d), load_up_to(key + k * d, c + kLanes, d), odd[k]);
    out[k] = (even[k] + odd[k]).v;
  }
}

// A vector's worth of keys shares one transpose to sum their lanes; the rest are summed one by one.
void decode_scores(const float* q, const float* keys, std::int64_t count, std::int64_t d, float scale, float* s) {
  constexpr int kTogether = 4;
  std::int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Register lanes[kLanes];
    for (int i = 0; i < kLanes; i += kTogether) key_lanes<kTogether>(q, keys + (j + i) * d, d, lanes + i);
    transpose(lanes);
    for (int width = static_cast<int>(kLanes) / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] = (Vec{lanes[i]} + Vec{lanes[i + width]}).v;
    store(s + j, broadcast(scale) * Vec{lanes[0]});
  }
  for (; j < count; ++j) {
    Register lanes;
    key_lanes<1>(q, keys + j * d, d, &lanes);
    s[j] = scale * sum(Vec{lanes});
  }
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

// `vectors` vectors of the result side by side: each is a chain of dependent sums.
template <int vectors>
inline void add_value_lanes(const float* p, const float* values, std::int64_t count, std::int64_t d, float* out) {
  Vec total[vectors];
  for (int i = 0; i < vectors; ++i) total[i] = load(out + i * kLanes);
  for (std::int64_t j = 0; j < count; ++j) {
    const Vec weight = broadcast(p[j]);
    for (int i = 0; i < vectors; ++i) total[i] = fma(weight, load(values + j * d + i * kLanes), total[i]);
  }
  for (int i = 0; i < vectors; ++i) store(out + i * kLanes, total[i]);
}

void decode_add_values(const float* p, const float* values, std::int64_t count, std::int64_t d, float* out) {
  constexpr std::int64_t kVectors = 8;
  std::int64_t c = 0;
  for (; c + kVectors * kLanes <= d; c += kVectors * kLanes) add_value_lanes<kVectors>(p, values + c, count, d, out + c);
  for (; c + kLanes <= d; c += kLanes) add_value_lanes<1>(p, values + c, count, d, out + c);
  if (c == d) return;
  Vec total = load_first(out + c, d - c);
  for (std::int64_t j = 0; j < count; ++j) total = fma(broadcast(p[j]), load_first(values + j * d + c, d - c), total);
  store_first(out + c, total, d - c);
}

}  // namespace
}  // namespace engine
