// linear_vector_simd.h: the row kernels of linear_vector.h.
//   NF4: the 16 values of a block's codes are scaled (and rounded) once, and the codes permute them: per 64 weights two loads of bytes,
//   four permutes and four multiply-adds per row of x.
#pragma once

#include "core/code_tables.h"
#include "ops/linear_vector.h"
#include "ops/simd.h"

namespace engine {
namespace {

void rearrange_values(const float* x, std::int64_t n, bool round, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += 64) {
    for (std::int64_t i = 0; i < 64; ++i) {
      const std::int64_t within = i % 32, at = begin + i / 32 * 32 + (within < 16 ? 2 * within : 2 * (within - 16) + 1);
      out[begin + i] = at < n ? x[at] : 0.0f;
    }
    if (round)
      for (std::int64_t i = begin; i < begin + 64; i += kLanes) store(out + i, round_bf16(load(out + i)));
  }
}

// The lanes' sums of each row of x, as totals.
template <int count, int parts>
inline void write_totals(const Vec (&sums)[count][parts], float* out) {
  for (int t = 0; t < count; ++t) {
    Vec total = sums[t][0];
    for (int i = 1; i < parts; ++i) total = total + sums[t][i];
    out[t] = sum(total);
  }
}

#if defined(__AVX512F__)

template <int count>
void nf4_dots(const float* x, std::int64_t stride, const std::uint8_t* packed, const float* scales, std::int64_t blocks, bool round, float* out) {
  Vec sums[count][4];
  for (auto& row : sums)
    for (Vec& s : row) s = broadcast(0);
  const Vec codes = load(reinterpret_cast<const float*>(&kNf4));
  for (std::int64_t block = 0; block < blocks; ++block) {
    Vec table = codes * broadcast(scales[block]);
    if (round) table = round_finite_bf16(table);
    const auto* bytes = reinterpret_cast<const __m128i*>(packed + 32 * block);
    // A permute reads the low 4 bits of each index: the second code of a byte as it is, the first after a shift.
    const __m512i a = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)), b = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes + 1));
    const Vec w[4] = {{_mm512_permutexvar_ps(_mm512_srli_epi32(a, 4), table.v)},
                      {_mm512_permutexvar_ps(a, table.v)},
                      {_mm512_permutexvar_ps(_mm512_srli_epi32(b, 4), table.v)},
                      {_mm512_permutexvar_ps(b, table.v)}};
#pragma GCC unroll 4
    for (int t = 0; t < count; ++t) {
      const float* p = x + t * stride + 64 * block;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[t][i] = fma(w[i], load(p + 16 * i), sums[t][i]);
    }
  }
  write_totals(sums, out);
}

template <int count>
void bf16_dots(const float* x, std::int64_t stride, const void* w, std::int64_t n, float* out) {
  Vec sums[count][4];
  for (auto& row : sums)
    for (Vec& s : row) s = broadcast(0);
  const auto* bytes = static_cast<const std::uint8_t*>(w);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (std::int64_t at = 0; at < n; at += 64) {
    const std::int64_t left = n - at;
    const __mmask32 first = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
    const __mmask32 second = left >= 64 ? 0xffffffffu : (left > 32 ? (1u << (left - 32)) - 1u : 0u);
    const __m512i a = _mm512_maskz_loadu_epi16(first, bytes + 2 * at), b = _mm512_maskz_loadu_epi16(second, bytes + 2 * at + 64);
    const Vec v[4] = {{_mm512_castsi512_ps(_mm512_slli_epi32(a, 16))},
                      {_mm512_castsi512_ps(_mm512_and_si512(a, upper))},
                      {_mm512_castsi512_ps(_mm512_slli_epi32(b, 16))},
                      {_mm512_castsi512_ps(_mm512_and_si512(b, upper))}};
#pragma GCC unroll 4
    for (int t = 0; t < count; ++t) {
      const float* p = x + t * stride + at;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[t][i] = fma(v[i], load(p + 16 * i), sums[t][i]);
    }
  }
  write_totals(sums, out);
}

#else

// Values of 8 codes, one per 32-bit lane (only its low 4 bits are looked at).
inline Vec code_values(__m256i index, Vec low, Vec high) {
  const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
  return {_mm256_blendv_ps(_mm256_permutevar8x32_ps(low.v, index), _mm256_permutevar8x32_ps(high.v, index), upper)};
}

template <int count>
void nf4_dots(const float* x, std::int64_t stride, const std::uint8_t* packed, const float* scales, std::int64_t blocks, bool round, float* out) {
  Vec sums[count][2];
  for (auto& row : sums)
    for (Vec& s : row) s = broadcast(0);
  const float* codes = reinterpret_cast<const float*>(&kNf4);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const Vec scale = broadcast(scales[block]);
    Vec low = load(codes) * scale, high = load(codes + 8) * scale;
    if (round) low = round_finite_bf16(low), high = round_finite_bf16(high);
    for (int eight = 0; eight < 4; ++eight) {  // 8 bytes: 8 even and 8 odd values
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + 32 * block + 8 * eight)));
      const Vec even = code_values(_mm256_srli_epi32(bytes, 4), low, high), odd = code_values(bytes, low, high);
      const std::int64_t at = 64 * block + eight / 2 * 32 + eight % 2 * 8;
#pragma GCC unroll 4
      for (int t = 0; t < count; ++t) {
        sums[t][0] = fma(even, load(x + t * stride + at), sums[t][0]);
        sums[t][1] = fma(odd, load(x + t * stride + at + 16), sums[t][1]);
      }
    }
  }
  write_totals(sums, out);
}

template <int count>
void bf16_dots(const float* x, std::int64_t stride, const void* w, std::int64_t n, float* out) {
  Vec sums[count][2];
  for (auto& row : sums)
    for (Vec& s : row) s = broadcast(0);
  const auto* bytes = static_cast<const std::uint8_t*>(w);
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  for (std::int64_t at = 0; at < n; at += 16) {
    __m256i pairs;
    if (n - at >= 16) {
      pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 2 * at));
    } else {
      alignas(32) std::uint8_t last[32] = {};
      __builtin_memcpy(last, bytes + 2 * at, static_cast<std::size_t>(2 * (n - at)));
      pairs = _mm256_load_si256(reinterpret_cast<const __m256i*>(last));
    }
    const Vec even = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))}, odd = {_mm256_castsi256_ps(_mm256_and_si256(pairs, upper))};
    const std::int64_t place = at / 32 * 32 + at % 32 / 2;
#pragma GCC unroll 4
    for (int t = 0; t < count; ++t) {
      sums[t][0] = fma(even, load(x + t * stride + place), sums[t][0]);
      sums[t][1] = fma(odd, load(x + t * stride + place + 16), sums[t][1]);
    }
  }
  write_totals(sums, out);
}

#endif

template <int count>
void f32_dots(const float* x, std::int64_t stride, const float* w, std::int64_t n, bool round, float* out) {
  Vec sums[count][2];
  for (auto& row : sums)
    for (Vec& s : row) s = broadcast(0);
  for (std::int64_t at = 0; at < n; at += 2 * kLanes)
    for (int i = 0; i < 2; ++i) {
      const std::int64_t place = at + i * kLanes;
      if (place >= n) break;
      Vec v = load_up_to(w, place, n);
      if (round) v = round_bf16(v);
#pragma GCC unroll 4
      for (int t = 0; t < count; ++t) sums[t][i] = fma(v, load_up_to(x + t * stride, place, n), sums[t][i]);
    }
  write_totals(sums, out);
}

void nf4_rows_of(const float* x, std::int64_t stride, int count, const std::uint8_t* packed, const float* scales, std::int64_t blocks, bool round,
                 float* out) {
  switch (count) {
    case 1: return nf4_dots<1>(x, stride, packed, scales, blocks, round, out);
    case 2: return nf4_dots<2>(x, stride, packed, scales, blocks, round, out);
    case 3: return nf4_dots<3>(x, stride, packed, scales, blocks, round, out);
    default: return nf4_dots<4>(x, stride, packed, scales, blocks, round, out);
  }
}

void bf16_rows_of(const float* x, std::int64_t stride, int count, const void* w, std::int64_t n, float* out) {
  switch (count) {
    case 1: return bf16_dots<1>(x, stride, w, n, out);
    case 2: return bf16_dots<2>(x, stride, w, n, out);
    case 3: return bf16_dots<3>(x, stride, w, n, out);
    default: return bf16_dots<4>(x, stride, w, n, out);
  }
}

void f32_rows_of(const float* x, std::int64_t stride, int count, const float* w, std::int64_t n, bool round, float* out) {
  switch (count) {
    case 1: return f32_dots<1>(x, stride, w, n, round, out);
    case 2: return f32_dots<2>(x, stride, w, n, round, out);
    case 3: return f32_dots<3>(x, stride, w, n, round, out);
    default: return f32_dots<4>(x, stride, w, n, round, out);
  }
}

void nf4_scale_values(const Nf4Scales& nf4, std::int64_t first, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i)
    out[i] = nf4.nested_map[nf4.codes[first + i]] * nf4.nested_absmax[(first + i) / 256] + nf4.offset;
}

}  // namespace
}  // namespace engine
