// elementwise_simd.h: the row kernels of elementwise_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/elementwise_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

void add_scaled_values(const float* x, float alpha, std::int64_t n, float* y) {
  const Vec a = broadcast(alpha);
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(y, fma(a, load_up_to(x, i, n), load_up_to(y, i, n)), i, n);
}

void scale_values(const float* x, float alpha, std::int64_t n, float* y) {
  const Vec a = broadcast(alpha);
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(y, a * load_up_to(x, i, n), i, n);
}

// Philox with one counter block per 64-bit lane: the four words of 4 or 8 blocks at once.
#if defined(__AVX512F__)
using Words = __m512i;
inline Words wide_set(std::uint32_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline Words wide_xor(Words a, Words b) { return _mm512_xor_si512(a, b); }
inline Words wide_product(Words a, Words b) { return _mm512_mul_epu32(a, b); }
inline Words wide_high(Words a) { return _mm512_srli_epi64(a, 32); }
inline Words wide_low(Words a) { return _mm512_and_si512(a, _mm512_set1_epi64(0xffffffffll)); }
inline Words wide_counters(std::uint64_t first) {
  return _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
}
inline void wide_store(std::uint64_t* p, Words a) { _mm512_storeu_si512(p, a); }
constexpr std::int64_t kBlocks = 8;
#else
using Words = __m256i;
inline Words wide_set(std::uint32_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
inline Words wide_xor(Words a, Words b) { return _mm256_xor_si256(a, b); }
inline Words wide_product(Words a, Words b) { return _mm256_mul_epu32(a, b); }
inline Words wide_high(Words a) { return _mm256_srli_epi64(a, 32); }
inline Words wide_low(Words a) { return _mm256_and_si256(a, _mm256_set1_epi64x(0xffffffffll)); }
inline Words wide_counters(std::uint64_t first) {
  return _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first)), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline void wide_store(std::uint64_t* p, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
constexpr std::int64_t kBlocks = 4;
#endif

// words[lane][block]: lane w of blocks first … first + kBlocks - 1 of the stream.
inline void philox_blocks(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::uint64_t (*words)[kBlocks]) {
  const Words counters = wide_counters(first);
  Words c0 = wide_low(counters), c1 = wide_high(counters);
  Words c2 = wide_set(static_cast<std::uint32_t>(stream)), c3 = wide_set(static_cast<std::uint32_t>(stream >> 32));
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  const Words m0 = wide_set(0xD2511F53u), m1 = wide_set(0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    const Words p0 = wide_product(m0, c0), p1 = wide_product(m1, c2);
    c0 = wide_xor(wide_xor(wide_high(p1), c1), wide_set(k0));
    c1 = wide_low(p1);
    c2 = wide_xor(wide_xor(wide_high(p0), c3), wide_set(k1));
    c3 = wide_low(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  wide_store(words[0], c0);
  wide_store(words[1], c1);
  wide_store(words[2], c2);
  wide_store(words[3], c3);
}

void dropout_values(Philox stream, std::int64_t first, std::uint32_t threshold, float factor, const float* x, std::int64_t n, float* y) {
  std::uint64_t words[4][kBlocks];
  for (std::int64_t i = 0; i < n;) {
    const std::int64_t at = first + i, block = at / 4;  // the blocks from here on; the first may be entered in its middle
    philox_blocks(stream.seed, stream.stream, static_cast<std::uint64_t>(block), words);
    const std::int64_t end = (block + kBlocks) * 4 - first, stop = end < n ? end : n;
    for (; i < stop; ++i) {
      const std::int64_t lane = first + i - block * 4;
      y[i] = words[lane % 4][lane / 4] >= threshold ? x[i] * factor : 0.0f;
    }
  }
}

double sum_of_squares_values(const float* x, std::int64_t n) {
  double total = 0;
  for (std::int64_t i = 0; i < n; i += kLanes) total += sum_squares_f64(load_up_to(x, i, n));
  return total;
}

std::int32_t argmax_values(const float* x, std::int64_t n) {
  const Vec lowest = broadcast(-__builtin_inff());
  Vec highest = lowest;
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec lanes = n - i >= kLanes ? load(x + i) : keep_first(load_first(x + i, n - i), lowest, n - i);
    highest = max(lanes, highest);  // a NaN among the lanes is dropped
  }
  const float peak = largest(highest);
  for (std::int64_t i = 0; i < n; ++i)
    if (x[i] == peak) return static_cast<std::int32_t>(i);
  return 0;
}

}  // namespace
}  // namespace engine
