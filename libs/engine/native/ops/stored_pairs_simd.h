// stored_pairs_simd.h: bf16 pairs (gemm_bf16_simd.h) straight from a stored bf16 or NF4 weight, without fp32 in between.
//   NF4: a block's 16 values are scaled and rounded once; a permute of bytes then looks up the 32 values of a pair register at a time.
//   Needs AVX-512 VBMI and VBMI2, which every processor with AMX has.
#pragma once

#include "core/code_tables.h"
#include "ops/gemm_bf16_simd.h"
#include "ops/matrix.h"

namespace engine {
namespace {

// The bf16 values of the 16 codes of a block of this scale, in the lower half.
inline __m512i code_words(float scale) {
  const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(reinterpret_cast<const float*>(&kNf4)), _mm512_set1_ps(scale));
  return _mm512_castsi256_si512(bf16_of(values));
}

inline __m512i code_words(const Nf4Scales& nf4, std::int64_t block) {
  return code_words(nf4.absmax != nullptr ? nf4.absmax[block] : nf4.nested_map[nf4.codes[block]] * nf4.nested_absmax[block / 256] + nf4.offset);
}

inline constexpr std::int64_t kScaleRun = 16;

// out[16] ← the scales of blocks [first, first + count) of a double-quantized tensor, count <= 16.
inline void nested_scales(const Nf4Scales& nf4, std::int64_t first, std::int64_t count, float* out) {
  const auto lanes = static_cast<__mmask16>((1u << count) - 1u);
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, nf4.codes + first));
  const std::int64_t nested = first / 256, own = (nested + 1) * 256 - first;  // blocks from here on that share the first one's nested scale
  __m512 absmax = _mm512_set1_ps(nf4.nested_absmax[nested]);
  if (own < count) absmax = _mm512_mask_mov_ps(_mm512_set1_ps(nf4.nested_absmax[nested + 1]), static_cast<__mmask16>((1u << own) - 1u), absmax);
  const __m512 values = _mm512_i32gather_ps(codes, nf4.nested_map, 4);
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_mul_ps(values, absmax), _mm512_set1_ps(nf4.offset)));
}

// 32 consecutive values of a row, as pairs: bytes hold two codes, the first in the high nibble, and a pair its first value low. Each byte goes to all
// four bytes of its pair, whose halves are turned until they hold 2 · code, the place of the value's low byte; the high byte of each value is the next.
//   A permute of 16-bit words would take one instruction less, but that one needs both of the processor's vector ports.
inline __m512i nf4_run(const std::uint8_t* packed, __m512i table) {
  const __m512i spread = _mm512_set_epi64(0x0f0f0f0f0e0e0e0e, 0x0d0d0d0d0c0c0c0c, 0x0b0b0b0b0a0a0a0a, 0x0909090908080808, 0x0707070706060606, 0x0505050504040404,
                                          0x0303030302020202, 0x0101010100000000);
  const __m512i bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed))), spread);
  const __m512i turned = _mm512_shldv_epi16(bytes, bytes, _mm512_set1_epi32(0x00010005));
  constexpr int kMaskThenSet = 0xea;  // (a & b) | c
  return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(turned, _mm512_set1_epi8(0x1e), _mm512_set1_epi16(0x0100), kMaskThenSet), table);
}

// Values [index, index + 32) of a weight as pairs along its rows, zeros beyond `left` values. table: of an NF4 weight's block there.
inline __m512i stored_run(const Matrix& w, std::int64_t index, std::int64_t left, __m512i table) {
  const __mmask32 lanes = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  if (w.dtype == Dtype::bf16) return _mm512_maskz_loadu_epi16(lanes, bytes + 2 * index);
  return _mm512_maskz_mov_epi16(lanes, nf4_run(bytes + index / 2, table));
}

// The table of the block that holds value `index`; any for a weight without.
inline __m512i stored_table(const Matrix& w, std::int64_t index) {
  return w.dtype == Dtype::nf4 ? code_words(w.nf4, index / 64) : _mm512_setzero_si512();
}

// Pairs of two rows of w, 16 columns: word i is (even's, odd's) value `half` * 16 + i.
inline __m512i interleaved(__m512i even, __m512i odd, int half) {
  const __m512i spread = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(even, _mm512_add_epi16(spread, _mm512_set1_epi16(static_cast<short>(16 * half))), odd);
}

}  // namespace
}  // namespace engine
