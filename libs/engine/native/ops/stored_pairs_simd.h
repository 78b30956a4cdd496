// stored_pairs_simd.h: bf16 pairs (gemm_bf16_simd.h) straight from a stored bf16 or NF4 weight, without fp32 in between.
//   NF4: a block's 16 values are scaled and rounded once; a permute then looks up the 32 values of a pair register at a time.
#pragma once

#include "core/code_tables.h"
#include "ops/gemm_bf16_simd.h"
#include "ops/matrix.h"

namespace engine {
namespace {

// The bf16 values of the 16 codes of one block, twice: a look-up takes five bits of its index and the fifth is not ours.
inline __m512i code_words(const Nf4Scales& nf4, std::int64_t block) {
  const float scale = nf4.absmax != nullptr
                          ? nf4.absmax[block]
                          : nf4.nested_map[nf4.codes[block]] * nf4.nested_absmax[block / 256] + nf4.offset;
  const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(reinterpret_cast<const float*>(&kNf4)), _mm512_set1_ps(scale));
  return bf16_of(values, values);
}

// 32 consecutive values of a row, as pairs: bytes hold two codes, the first in the high nibble, and a pair its first value low.
inline __m512i nf4_run(const std::uint8_t* packed, __m512i table) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  return _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16)), table);
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
