// nf4_simd.h: the row kernels of nf4_rows.h in vectors of fp32 lanes. The same bits as the definition.
#pragma once

#include "core/code_tables.h"
#include "ops/nf4_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

// The values of kLanes codes, one per byte, times the scale that the table already holds.
#if defined(__AVX512F__)
struct CodeValues {
  __m512 table;
  explicit CodeValues(float scale) : table(_mm512_mul_ps(_mm512_loadu_ps(kNf4.data()), _mm512_set1_ps(scale))) {}
  // values[i] for the 16 bytes of `codes`
  void write(__m128i codes, float* out) const { _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table)); }
};
#else
struct CodeValues {
  __m256 low, high;
  explicit CodeValues(float scale)
      : low(_mm256_mul_ps(_mm256_loadu_ps(kNf4.data()), _mm256_set1_ps(scale))),
        high(_mm256_mul_ps(_mm256_loadu_ps(kNf4.data() + 8), _mm256_set1_ps(scale))) {}
  void write8(__m128i codes, float* out) const {
    const __m256i index = _mm256_cvtepu8_epi32(codes);  // a permute looks at 3 bits; bit 3 picks the half
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    _mm256_storeu_ps(out, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper));
  }
  void write(__m128i codes, float* out) const {
    write8(codes, out);
    write8(_mm_srli_si128(codes, 8), out + 8);
  }
};
#endif

void nf4_decode_block(const std::uint8_t* packed, float scale, float* out) {
  const CodeValues values(scale);
  const __m128i nibble = _mm_set1_epi8(15);
  for (int half = 0; half < 2; ++half) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + 16 * half));
    const __m128i first = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), second = _mm_and_si128(bytes, nibble);
    values.write(_mm_unpacklo_epi8(first, second), out + 32 * half);
    values.write(_mm_unpackhi_epi8(first, second), out + 32 * half + 16);
  }
}

float nf4_quantize_whole_block(const float* w, std::uint8_t* codes) {
  Vec peak = broadcast(0), poison = broadcast(0);
  for (std::int64_t i = 0; i < 64; i += kLanes) {
    const Vec x = load(w + i);
    peak = max(peak, abs(x));
    poison = poison + x * broadcast(0.0f);  // 0 for finite values, NaN for the others
  }
  if (!(sum(poison) == 0.0f)) return __builtin_nanf("");
  const float absmax = largest(peak);
  const Vec reciprocal = broadcast(1.0f) / broadcast(absmax);
  for (std::int64_t i = 0; i < 64; i += kLanes) {
    const Vec x = load(w + i) * reciprocal;
    Vec code = broadcast(0);
    for (int t = 0; t < 15; ++t) code = code + select(less(broadcast(kNf4Thresholds.data()[t]), x), broadcast(1.0f), broadcast(0.0f));
    alignas(64) float lanes[kLanes];
    store(lanes, code);
    for (std::int64_t lane = 0; lane < kLanes; ++lane) codes[i + lane] = static_cast<std::uint8_t>(lanes[lane]);
  }
  return absmax;
}

float nf4_quantize_block(const float* w, std::int64_t n, std::uint8_t* codes) {
  if (n == 64) return nf4_quantize_whole_block(w, codes);
  float whole[64] = {};
  std::uint8_t whole_codes[64];
  __builtin_memcpy(whole, w, static_cast<std::size_t>(n) * 4);
  const float absmax = nf4_quantize_whole_block(whole, whole_codes);
  __builtin_memcpy(codes, whole_codes, static_cast<std::size_t>(n));
  return absmax;
}

}  // namespace
}  // namespace engine
