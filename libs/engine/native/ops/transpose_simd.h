// transpose_simd.h: 16 x 16 (AVX-512) and 8 x 8 (AVX2) transposes of 32-bit values in registers.
#pragma once

#include "ops/simd.h"

namespace engine {
namespace {

#if defined(__AVX512F__)
// rows[i] lane j  ->  rows[j] lane i
inline void transpose(__m512 (&rows)[16]) {
  __m512 t[16];
  for (int i = 0; i < 8; ++i) {  // pairs of rows, 32-bit interleave
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {  // groups of four rows: each register now holds one column of four in every 128-bit lane
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]), c = _mm512_castps_pd(t[4 * i + 2]),
                  d = _mm512_castps_pd(t[4 * i + 3]);
    rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {  // and the lanes are brought together
    const __m512 a = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0x88), b = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0xdd), d = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0xdd);
    t[i] = _mm512_shuffle_f32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_f32x4(a, b, 0xdd);
    t[4 + i] = _mm512_shuffle_f32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}
#else
inline void transpose(__m256 (&rows)[8]) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    const __m256 a = t[4 * i], b = t[4 * i + 1], c = t[4 * i + 2], d = t[4 * i + 3];
    rows[4 * i] = _mm256_shuffle_ps(a, c, 0x44);
    rows[4 * i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    rows[4 * i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    rows[4 * i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x20);
    t[4 + i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x31);
  }
  for (int i = 0; i < 8; ++i) rows[i] = t[i];
}
#endif

}  // namespace
}  // namespace engine
