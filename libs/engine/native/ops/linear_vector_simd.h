// linear_vector_simd.h: the row kernels of linear_vector.h.
//   NF4: the 16 values of a block's codes are scaled (and rounded) once, and the codes permute them: with AVX-512, 64 weights take two loads
//   of bytes, four permutes and four multiply-adds per row of x. Four weight rows go along together: their sums are four chains of
//   multiply-adds that overlap, and they share what is loaded of x.
#pragma once

#include "core/code_tables.h"
#include "ops/linear_vector.h"
#include "ops/simd.h"
#include "ops/transpose_simd.h"

namespace engine {
namespace {

inline constexpr std::int64_t kStep = 2 * kLanes;

void rearrange_values(const float* x, std::int64_t n, bool round, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += kStep) {
    for (std::int64_t i = 0; i < kStep; ++i) {
      const std::int64_t at = begin + (i < kLanes ? 2 * i : 2 * (i - kLanes) + 1);
      out[begin + i] = at < n ? x[at] : 0.0f;
    }
    if (round)
      for (std::int64_t i = begin; i < begin + kStep; i += kLanes) store(out + i, round_bf16(load(out + i)));
  }
}

// The sums of `rows` weight rows with `count` rows of x.
template <int count, int rows>
struct Sums {
  Vec at[count][rows];
  Sums() {
    for (auto& row : at)
      for (Vec& s : row) s = broadcast(0);
  }
  // Adds w · x for the weight row r; x points at the vector of the first row of x.
  void add(int r, Vec w, const float* x, std::int64_t stride) {
#pragma GCC unroll 4
    for (int t = 0; t < count; ++t) at[t][r] = fma(w, load(x + t * stride), at[t][r]);
  }
  void write(float* sums) const {
    for (int t = 0; t < count; ++t)
      for (int r = 0; r < rows; ++r) store(sums + (t * kLanes + r) * kLanes, at[t][r]);
  }
};

#if defined(__AVX512F__)

// The 64 weights of one block, in the order of the rearranged x.
struct Nf4Block {
  Vec w[4];
  Nf4Block(const std::uint8_t* packed, float scale, bool round) {
    Vec table = load(reinterpret_cast<const float*>(&kNf4)) * broadcast(scale);
    if (round) table = round_finite_bf16(table);
    const auto* bytes = reinterpret_cast<const __m128i*>(packed);
    // A permute reads the low 4 bits of each index: the second code of a byte as it is, the first after a shift.
    const __m512i a = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)), b = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes + 1));
    w[0] = {_mm512_permutexvar_ps(_mm512_srli_epi32(a, 4), table.v)};
    w[1] = {_mm512_permutexvar_ps(a, table.v)};
    w[2] = {_mm512_permutexvar_ps(_mm512_srli_epi32(b, 4), table.v)};
    w[3] = {_mm512_permutexvar_ps(b, table.v)};
  }
};

// Two bf16 in every 32-bit word, `left` of them there.
inline __m512i bf16_words(const std::uint8_t* w, std::int64_t left) {
  return left >= kStep ? _mm512_loadu_si512(w) : _mm512_maskz_loadu_epi16((1u << left) - 1u, w);
}
inline Vec even_of(__m512i words) { return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))}; }
inline Vec odd_of(__m512i words) { return {_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}; }

inline void split(Vec a, Vec b, Vec& even, Vec& odd) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = {_mm512_permutex2var_ps(a.v, first, b.v)};
  odd = {_mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b.v)};
}

#else

struct Nf4Block {
  Vec w[8];
  Nf4Block(const std::uint8_t* packed, float scale, bool round) {
    const float* codes = reinterpret_cast<const float*>(&kNf4);
    Vec low = load(codes) * broadcast(scale), high = load(codes + 8) * broadcast(scale);
    if (round) low = round_finite_bf16(low), high = round_finite_bf16(high);
    for (int i = 0; i < 4; ++i) {  // 8 bytes: 8 even and 8 odd values
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + 8 * i)));
      w[2 * i] = look_up(_mm256_srli_epi32(bytes, 4), low, high);
      w[2 * i + 1] = look_up(bytes, low, high);
    }
  }
  // Values of 8 codes, one per 32-bit lane (only its low 4 bits are looked at).
  static Vec look_up(__m256i index, Vec low, Vec high) {
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return {_mm256_blendv_ps(_mm256_permutevar8x32_ps(low.v, index), _mm256_permutevar8x32_ps(high.v, index), upper)};
  }
};

inline __m256i bf16_words(const std::uint8_t* w, std::int64_t left) {
  if (left >= kStep) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  alignas(32) std::uint8_t last[32] = {};
  __builtin_memcpy(last, w, static_cast<std::size_t>(2 * left));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(last));
}
inline Vec even_of(__m256i words) { return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))}; }
inline Vec odd_of(__m256i words) { return {_mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))}; }

inline void split(Vec a, Vec b, Vec& even, Vec& odd) {
  const auto ordered = [](__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); };
  even = {ordered(_mm256_shuffle_ps(a.v, b.v, 0x88))};
  odd = {ordered(_mm256_shuffle_ps(a.v, b.v, 0xdd))};
}

#endif

constexpr std::int64_t kLineBytes = 64;

template <int count, int rows>
void nf4_dots(const float* x, std::int64_t stride, const std::uint8_t* packed, std::int64_t row_bytes, const float* scales, std::int64_t scale_stride,
              std::int64_t blocks, bool round, float* out) {
  Sums<count, rows> sums;
  for (std::int64_t block = 0; block < blocks; ++block)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const std::uint8_t* bytes = packed + r * row_bytes + 32 * block;
      if (block % 2 == 0) __builtin_prefetch(bytes + rows * row_bytes);  // the rows after these
      const Nf4Block weights(bytes, scales[r * scale_stride + block], round);
#pragma GCC unroll 8
      for (int i = 0; i < 64 / kLanes; ++i) sums.add(r, weights.w[i], x + 64 * block + i * kLanes, stride);
    }
  sums.write(out);
}

template <int count, int rows>
void bf16_dots(const float* x, std::int64_t stride, const std::uint8_t* w, std::int64_t row_bytes, std::int64_t n, float* out) {
  Sums<count, rows> sums;
  for (std::int64_t at = 0; at < n; at += kStep)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const std::uint8_t* bytes = w + r * row_bytes + 2 * at;
      __builtin_prefetch(bytes + rows * row_bytes);
      const auto words = bf16_words(bytes, n - at);
      sums.add(r, even_of(words), x + at, stride);
      sums.add(r, odd_of(words), x + at + kLanes, stride);
    }
  sums.write(out);
}

template <int count, int rows>
void f32_dots(const float* x, std::int64_t stride, const float* w, std::int64_t row_stride, std::int64_t n, bool round, float* out) {
  Sums<count, rows> sums;
  for (std::int64_t at = 0; at < n; at += kStep)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const float* values = w + r * row_stride;
      Vec even, odd;
      split(load_up_to(values, at, n), n - at > kLanes ? load_up_to(values, at + kLanes, n) : broadcast(0), even, odd);
      if (round) even = round_bf16(even), odd = round_bf16(odd);
      sums.add(r, even, x + at, stride);
      sums.add(r, odd, x + at + kLanes, stride);
    }
  sums.write(out);
}

// body.template operator()<count, rows>(r): weight rows r … in fours, then one by one.
template <int count, class Body>
void rows_in_fours(int rows, Body&& body) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) body.template operator()<count, 4>(r);
  for (; r < rows; ++r) body.template operator()<count, 1>(r);
}
template <class Body>
void for_count(int count, int rows, Body&& body) {
  switch (count) {
    case 1: return rows_in_fours<1>(rows, body);
    case 2: return rows_in_fours<2>(rows, body);
    case 3: return rows_in_fours<3>(rows, body);
    default: return rows_in_fours<4>(rows, body);
  }
}

void nf4_sums(const float* x, std::int64_t stride, int count, const std::uint8_t* packed, std::int64_t row_bytes, const float* scales,
              std::int64_t scale_stride, int rows, std::int64_t blocks, bool round, float* sums) {
  for_count(count, rows, [&]<int t, int r>(int first) {
    nf4_dots<t, r>(x, stride, packed + first * row_bytes, row_bytes, scales + first * scale_stride, scale_stride, blocks, round, sums + first * kLanes);
  });
}

void bf16_sums(const float* x, std::int64_t stride, int count, const std::uint8_t* w, std::int64_t row_bytes, int rows, std::int64_t n, float* sums) {
  for_count(count, rows, [&]<int t, int r>(int first) { bf16_dots<t, r>(x, stride, w + first * row_bytes, row_bytes, n, sums + first * kLanes); });
}

void f32_sums(const float* x, std::int64_t stride, int count, const float* w, std::int64_t row_stride, int rows, std::int64_t n, bool round, float* sums) {
  for_count(count, rows, [&]<int t, int r>(int first) { f32_dots<t, r>(x, stride, w + first * row_stride, row_stride, n, round, sums + first * kLanes); });
}

void finish_sums(const float* sums, int rows, const float* bias, bool accumulate, float* y) {
  Register lanes[kLanes];
  for (int r = 0; r < kLanes; ++r) lanes[r] = r < rows ? load(sums + r * kLanes).v : broadcast(0).v;
  transpose(lanes);
  Vec value{lanes[0]};
  if (accumulate) value = value + load_first(y, rows);
  if (bias != nullptr) value = value + load_first(bias, rows);
  for (int lane = 1; lane < kLanes; ++lane) value = value + Vec{lanes[lane]};
  store_first(y, value, rows);
}

void nf4_scale_values(const Nf4Scales& nf4, std::int64_t first, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t nested = (first + i) / 256, end = (nested + 1) * 256 - first;
    const float absmax = nf4.nested_absmax[nested];
    for (const std::int64_t stop = end < count ? end : count; i < stop; ++i) out[i] = nf4.nested_map[nf4.codes[first + i]] * absmax + nf4.offset;
  }
}

}  // namespace
}  // namespace engine
