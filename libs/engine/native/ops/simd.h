// simd.h: one vector of fp32 lanes, 8 wide with AVX2 and 16 wide with AVX-512, so that a row kernel is written once (op_simd.h) and
//   compiled for both (op_avx2.cpp, op_avx512.cpp).
//   Only files compiled for those instructions include this. All is in an unnamed namespace and nothing here uses std templates: a
//   shared inline function compiled with AVX-512 could be the copy the linker keeps for machines without it.
#pragma once

#include <immintrin.h>

#include <cstdint>

// GCC 12 takes the undefined lanes inside its own intrinsics for uses of uninitialized values.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace engine {
namespace {

#if defined(__AVX512F__)

inline constexpr std::int64_t kLanes = 16;

using Register = __m512;
struct Vec {
  Register v;
};
struct Mask {
  __mmask16 m;
};

inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
// The first n lanes, 0 < n <= kLanes; the others are 0 and memory beyond is not touched.
inline __mmask16 first_lanes(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_first(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store_first(float* p, Vec x, std::int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
// x in the first n lanes, `other` in the rest.
inline Vec keep_first(Vec x, Vec other, std::int64_t n) { return {_mm512_mask_blend_ps(first_lanes(n), other.v, x.v)}; }

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }        // a·b + c
inline Vec negated_fma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a·b
// A NaN in the second argument wins; one in the first is lost.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  // bitwise select: sign's bit where `bit` is set, magnitude elsewhere
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.v), _mm512_castps_si512(magnitude.v), 0xca))};
}
inline Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
// Lanes whose index, counted from i, lies in [first, last).
inline Mask between(std::int64_t i, std::int64_t first, std::int64_t last) {
  const auto below = [i](std::int64_t end) -> std::uint32_t {
    const std::int64_t n = end - i;
    return n >= 16 ? 0xffffu : (n > 0 ? (1u << n) - 1u : 0u);
  };
  return {static_cast<__mmask16>(below(last) & ~below(first))};
}
inline float first_lane(Vec a) { return _mm512_cvtss_f32(a.v); }
inline Vec round_to_integer(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // n whole
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }

// Nearest bf16, ties to even, as fp32. NaN stays NaN.
inline Vec round_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_mask_mov_epi32(rounded, nan, quiet), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// The same for what is known to be no NaN.
inline Vec round_finite_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return {_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Vec load_bf16(const void* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16))};
}
inline Vec load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }

// Σ of the lanes and of their squares in fp64.
inline double sum_squares_f64(Vec a) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1));
  return _mm512_reduce_add_pd(_mm512_fmadd_pd(low, low, _mm512_mul_pd(high, high)));
}

#else

inline constexpr std::int64_t kLanes = 8;

using Register = __m256;
struct Vec {
  Register v;
};
struct Mask {
  __m256 m;
};

inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline __m256i first_lanes(std::int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* p, std::int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void store_first(float* p, Vec x, std::int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x.v); }
inline Vec keep_first(Vec x, Vec other, std::int64_t n) { return {_mm256_blendv_ps(other.v, x.v, _mm256_castsi256_ps(first_lanes(n)))}; }

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec negated_fma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_and_ps(bit, sign.v), _mm256_andnot_ps(bit, magnitude.v))};
}
inline Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
inline Mask between(std::int64_t i, std::int64_t first, std::int64_t last) {
  const __m256i index = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(i)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(last)), index);
  return {_mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(first)), index), in))};
}
inline float first_lane(Vec a) { return _mm256_cvtss_f32(a.v); }
inline Vec round_to_integer(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_two(Vec a, Vec n) {  // -126 <= n <= 128; 128 is infinity
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline Vec round_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
  return {_mm256_and_ps(chosen, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Vec round_finite_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return {_mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Vec load_bf16(const void* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16))};
}
inline Vec load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
inline double sum_squares_f64(Vec a) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a.v)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1));
  const __m256d both = _mm256_fmadd_pd(low, low, _mm256_mul_pd(high, high));
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}

#endif

// The lanes of p[i], p[i + 1], … below n; for the last, shorter piece of a row.
inline Vec load_up_to(const float* p, std::int64_t i, std::int64_t n) { return n - i >= kLanes ? load(p + i) : load_first(p + i, n - i); }
inline void store_up_to(float* p, Vec x, std::int64_t i, std::int64_t n) {
  if (n - i >= kLanes)
    store(p + i, x);
  else
    store_first(p + i, x, n - i);
}

// e^x, within 2 ulp; 0 below -87.3 (where the result would be subnormal, which costs the CPU a hundred times as much), infinity
// above 88.8, NaN for NaN.   x = n·ln 2 + r, |r| <= ln 2 / 2;  e^r by its Taylor-like
// minimax polynomial (Cephes expf).
inline Vec exp(Vec x) {
  const Vec lowest = broadcast(-87.3f), clamped = min(broadcast(88.8f), max(lowest, x));
  const Vec n = round_to_integer(clamped * broadcast(1.44269504f));
  Vec r = negated_fma(n, broadcast(0.693359375f), clamped);
  r = negated_fma(n, broadcast(-2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  return select(less(x, lowest), broadcast(0.0f), times_power_of_two(p, n));
}

inline Vec sigmoid(Vec x) {
  const Vec one = broadcast(1.0f);
  return one / (one + exp(broadcast(0.0f) - x));
}

// tanh, within 3 ulp: a polynomial near 0, where 1 - 2/(e^2x + 1) would cancel.
inline Vec tanh(Vec x) {
  const Vec magnitude = abs(x), one = broadcast(1.0f), z = x * x;
  Vec p = broadcast(-5.70498872745e-3f);
  p = fma(p, z, broadcast(2.06390887954e-2f));
  p = fma(p, z, broadcast(-5.37397155531e-2f));
  p = fma(p, z, broadcast(1.33314422036e-1f));
  p = fma(p, z, broadcast(-3.33332819422e-1f));
  const Vec near = fma(p * z, x, x);
  const Vec far = copy_sign(one - broadcast(2.0f) / (exp(magnitude + magnitude) + one), x);
  return select(less(magnitude, broadcast(0.625f)), near, far);
}

}  // namespace
}  // namespace engine
