// adamw_simd.h: the row kernels of adamw_rows.h in vectors of fp32 lanes. The same operations in the same order as the definition,
//   none of them fused: the results have the same bits.
#pragma once

#include "core/code_tables.h"
#include "ops/adamw_rows.h"
#include "ops/dynamic8.h"
#include "ops/simd.h"

namespace engine {
namespace {

#if defined(__AVX512F__)
struct Ints {
  __m512i v;
};
inline Vec gather(const float* table, Ints at) { return {_mm512_i32gather_ps(at.v, table, 4)}; }
inline Ints gather(const std::int32_t* table, Ints at) { return {_mm512_i32gather_epi32(at.v, table, 4)}; }
inline Ints load_codes(const std::uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline void store_codes(std::uint8_t* p, Ints codes) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes.v)); }
inline Ints bins(Vec x) {
  const __m512i prefix = _mm512_srli_epi32(_mm512_castps_si512(abs(x).v), 16);
  const __m512i clamped = _mm512_max_epi32(prefix, _mm512_set1_epi32(Dynamic8Lookup::kFirstBin));
  return {_mm512_sub_epi32(clamped, _mm512_set1_epi32(Dynamic8Lookup::kFirstBin))};
}
inline Ints plus_where_less(Ints codes, Vec a, Vec b) {  // + 1 where a < b
  return {_mm512_mask_add_epi32(codes.v, less(a, b).m, codes.v, _mm512_set1_epi32(1))};
}
inline Ints select_negative(Vec x, Ints negative, Ints positive) {
  return {_mm512_mask_mov_epi32(positive.v, _mm512_movepi32_mask(_mm512_castps_si512(x.v)), negative.v)};
}
inline Ints minus_where_equal_and_negative(Ints codes, std::int32_t value, Vec x) {  // - 1 where the code is `value` and x has a sign
  const __mmask16 m = _mm512_cmpeq_epi32_mask(codes.v, _mm512_set1_epi32(value)) & _mm512_movepi32_mask(_mm512_castps_si512(x.v));
  return {_mm512_mask_sub_epi32(codes.v, m, codes.v, _mm512_set1_epi32(1))};
}
#else
struct Ints {
  __m256i v;
};
inline Vec gather(const float* table, Ints at) { return {_mm256_i32gather_ps(table, at.v, 4)}; }
inline Ints gather(const std::int32_t* table, Ints at) { return {_mm256_i32gather_epi32(table, at.v, 4)}; }
inline Ints load_codes(const std::uint8_t* p) { return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))}; }
inline void store_codes(std::uint8_t* p, Ints codes) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes.v), _mm256_extracti128_si256(codes.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
inline Ints bins(Vec x) {
  const __m256i prefix = _mm256_srli_epi32(_mm256_castps_si256(abs(x).v), 16);
  const __m256i clamped = _mm256_max_epi32(prefix, _mm256_set1_epi32(Dynamic8Lookup::kFirstBin));
  return {_mm256_sub_epi32(clamped, _mm256_set1_epi32(Dynamic8Lookup::kFirstBin))};
}
inline Ints plus_where_less(Ints codes, Vec a, Vec b) { return {_mm256_sub_epi32(codes.v, _mm256_castps_si256(less(a, b).m))}; }
inline Ints select_negative(Vec x, Ints negative, Ints positive) {
  return {_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(positive.v), _mm256_castsi256_ps(negative.v), x.v))};
}
inline Ints minus_where_equal_and_negative(Ints codes, std::int32_t value, Vec x) {
  const __m256i equal = _mm256_cmpeq_epi32(codes.v, _mm256_set1_epi32(value));
  return {_mm256_add_epi32(codes.v, _mm256_and_si256(equal, _mm256_srai_epi32(_mm256_castps_si256(x.v), 31)))};
}
#endif

struct MomentVecs {
  Vec m, v;
};

inline MomentVecs next_moments(const AdamWConstants& c, Vec g, Vec m, Vec v) {
  const Vec scaled = g * broadcast(c.grad_scale);
  return {m * broadcast(c.beta1) + broadcast(c.one_minus_beta1) * scaled, v * broadcast(c.beta2) + broadcast(c.one_minus_beta2) * scaled * scaled};
}

inline Vec updated(const AdamWConstants& c, Vec p, MomentVecs s) {
  if (c.decay_before) p = p * broadcast(c.decay);
  p = p - broadcast(c.step_size) * (s.m / (sqrt(s.v) + broadcast(c.epsilon)));
  if (!c.decay_before) p = p * broadcast(c.decay);
  return p;
}

void adamw_values(const AdamWConstants& c, float* p, const float* g, float* m, float* v, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const MomentVecs s = next_moments(c, load_up_to(g, i, n), load_up_to(m, i, n), load_up_to(v, i, n));
    store_up_to(m, s.m, i, n);
    store_up_to(v, s.v, i, n);
    store_up_to(p, updated(c, load_up_to(p, i, n), s), i, n);
  }
}

inline Ints nearest_codes(const Dynamic8Lookup& lookup, Vec x) {
  const Ints bin = bins(x);
  const Ints first = select_negative(x, gather(lookup.negative.data(), bin), gather(lookup.positive.data(), bin));
  return plus_where_less(first, gather(lookup.middle.data(), first), x);
}

inline Ints nearest_codes_of_positive(const Dynamic8Lookup& lookup, Vec x) {
  const Ints first = gather(lookup.positive.data(), bins(x));
  return plus_where_less(first, gather(lookup.middle.data(), first), x);
}

void adamw_whole_block(const AdamWConstants& c, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax,
                       float* v_absmax) {
  alignas(64) float m_states[kDynamicBlock], v_states[kDynamicBlock];
  const Vec m_scale = broadcast(*m_absmax), v_scale = broadcast(*v_absmax);
  Vec m_peak = broadcast(0), v_peak = broadcast(0);
  for (std::int64_t i = 0; i < kDynamicBlock; i += kLanes) {
    const Vec m = gather(kDynamicSigned.data(), load_codes(m_codes + i)) * m_scale;
    const Vec v = gather(kDynamicUnsigned.data(), load_codes(v_codes + i)) * v_scale;
    const MomentVecs s = next_moments(c, load(g + i), m, v);
    store(m_states + i, s.m);
    store(v_states + i, s.v);
    m_peak = max(m_peak, abs(s.m));
    v_peak = max(v_peak, abs(s.v));
  }
  const float m_largest = largest(m_peak), v_largest = largest(v_peak);
  // A scale of 0 means states of 0, and 0 / 1 is the 0 wanted.
  const Vec m_divisor = broadcast(m_largest > 0 ? m_largest : 1.0f), v_divisor = broadcast(v_largest > 0 ? v_largest : 1.0f);
  const Dynamic8Lookup &m_lookup = signed_lookup(), &v_lookup = unsigned_lookup();
  constexpr std::int32_t kZeroCode = 127;
  for (std::int64_t i = 0; i < kDynamicBlock; i += kLanes) {
    const MomentVecs s = {load(m_states + i), load(v_states + i)};
    store(p + i, updated(c, load(p + i), s));
    // The only entry of another sign than its x is +0 for a small negative x.
    store_codes(m_codes + i, minus_where_equal_and_negative(nearest_codes(m_lookup, s.m / m_divisor), kZeroCode, s.m));
    store_codes(v_codes + i, nearest_codes_of_positive(v_lookup, s.v / v_divisor));
  }
  *m_absmax = m_largest;
  *v_absmax = v_largest;
}

void adamw_block(const AdamWConstants& c, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax, float* v_absmax,
                 std::int64_t n) {
  if (n == kDynamicBlock) return adamw_whole_block(c, p, g, m_codes, v_codes, m_absmax, v_absmax);
  // A shorter last block goes through a whole one whose tail has no gradient and no state.
  float p_whole[kDynamicBlock] = {}, g_whole[kDynamicBlock] = {};
  std::uint8_t m_whole[kDynamicBlock], v_whole[kDynamicBlock] = {};
  const auto count = static_cast<std::size_t>(n);
  __builtin_memset(m_whole, 127, kDynamicBlock);
  __builtin_memcpy(p_whole, p, count * 4);
  __builtin_memcpy(g_whole, g, count * 4);
  __builtin_memcpy(m_whole, m_codes, count);
  __builtin_memcpy(v_whole, v_codes, count);
  adamw_whole_block(c, p_whole, g_whole, m_whole, v_whole, m_absmax, v_absmax);
  __builtin_memcpy(p, p_whole, count * 4);
  __builtin_memcpy(m_codes, m_whole, count);
  __builtin_memcpy(v_codes, v_whole, count);
}

}  // namespace
}  // namespace engine
