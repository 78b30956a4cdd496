// gemm_bf16_simd.h: packing fp32 into bf16 pairs, for the two kernels that multiply bf16 (bf16_instructions.h).
//   A "pair" is a 32-bit word with two consecutive depths of one row, the earlier in its low half: what vdpbf16ps and tdpbf16ps take.
#pragma once

#include "ops/bf16_instructions.h"
#include "ops/gemm_finish_simd.h"
#include "ops/gemm_kernel.h"
#include "ops/simd.h"
#include "ops/transpose_simd.h"

namespace engine {
namespace {

inline constexpr int kPairDepths = 32;  // depths packed at a time: 16 pairs

inline __m512i pairs_of_row(const float* row, std::int64_t depth) {  // lanes: pairs along the depth
  const Vec low = depth >= 16 ? load(row) : (depth > 0 ? load_first(row, depth) : broadcast(0));
  const Vec high = depth >= 32 ? load(row + 16) : (depth > 16 ? load_first(row + 16, depth - 16) : broadcast(0));
  return bf16_of(high.v, low.v);
}

inline __m512i widened_bf16(Vec x) { return _mm512_cvtepu16_epi32(bf16_of(x.v)); }

inline void transpose_words(__m512i (&words)[16]) {
  __m512 rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_castsi512_ps(words[i]);
  transpose(rows);
  for (int i = 0; i < 16; ++i) words[i] = _mm512_castps_si512(rows[i]);
}

// words[p] lane i: pair p of row i, for up to 16 rows and 32 depths; zeros beyond count and depth.
inline void load_pairs_by_depth(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, __m512i (&words)[16]) {
  if (depth_stride == 1) {
    for (int i = 0; i < 16; ++i) words[i] = i < count ? pairs_of_row(source + i * stride, depth) : _mm512_setzero_si512();
    transpose_words(words);
    return;
  }
  const auto depth_row = [&](std::int64_t d) {
    if (d >= depth || count <= 0) return broadcast(0);
    return count >= 16 ? load(source + d * depth_stride) : load_first(source + d * depth_stride, count);
  };
  for (int p = 0; p < 16; ++p)
    words[p] = _mm512_or_si512(widened_bf16(depth_row(2 * p)), _mm512_slli_epi32(widened_bf16(depth_row(2 * p + 1)), 16));
}

// words[i] lane p: the same, row by row.
inline void load_pairs_by_row(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, __m512i (&words)[16]) {
  if (depth_stride == 1) {
    for (int i = 0; i < 16; ++i) words[i] = i < count ? pairs_of_row(source + i * stride, depth) : _mm512_setzero_si512();
    return;
  }
  load_pairs_by_depth(source, stride, depth_stride, count, depth, words);
  transpose_words(words);
}

}  // namespace
}  // namespace engine
