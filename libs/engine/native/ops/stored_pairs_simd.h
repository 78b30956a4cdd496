// stored_pairs_simd.h: bf16 pairs (gemm_bf16_simd.h) straight from a stored bf16 or NF4 weight, without fp32 in between.
//   NF4: a block's 16 values are scaled and rounded once; a permute of bytes then looks up the 32 values of a pair register at a time, its pairs
//   in the order of kNf4Pairs, which takes three instructions where the order along the row takes four.
//   Needs AVX-512 VBMI, which every processor with AMX has.
#pragma once

#include "core/code_tables.h"
#include "ops/gemm_bf16_simd.h"
#include "ops/matrix.h"

namespace engine {
namespace {

// Place p of 32 values looked up has this pair of theirs: two qwords of codes lie in every other qword of a register, so their pairs take turns by twos.
inline constexpr int kNf4Pairs[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};

inline __m512i nf4_pair_order() { return _mm512_loadu_si512(kNf4Pairs); }

// The bf16 values of the 16 codes of a block of this scale, in the lower half.
inline __m512i code_words(float scale) {
  const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(reinterpret_cast<const float*>(&kNf4)), _mm512_set1_ps(scale));
  return _mm512_castsi256_si512(bf16_of(values));
}
// Of two blocks: rounding both takes what rounding one does.
inline __m512i code_words(float first, float second) {
  const __m512 codes = _mm512_loadu_ps(reinterpret_cast<const float*>(&kNf4));
  return bf16_of(_mm512_mul_ps(codes, _mm512_set1_ps(second)), _mm512_mul_ps(codes, _mm512_set1_ps(first)));
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

// Where each byte of a looked-up register takes its 8 bits from in a qword of 16 codes: from the bit before the code's, so that bits 1 to 4 are the code.
// Bytes hold two codes, the first in the high nibble; both bytes of a value have the same code.
struct Nf4Bits {
  std::uint8_t at[64];
  constexpr Nf4Bits() : at{} {
    for (int byte = 0; byte < 64; ++byte) {
      const int code = 2 * kNf4Pairs[byte / 4] % 16 + byte / 2 % 2;
      at[byte] = static_cast<std::uint8_t>((8 * (code / 2) + (code % 2 == 0 ? 4 : 0) + 63) % 64);
    }
  }
};
inline constexpr Nf4Bits kNf4Bits;

// 32 consecutive values of a row, pairs in the order of kNf4Pairs, of the block in half `half` of the table. A value's bytes are at 2 · code and the next.
template <int half = 0>
inline __m512i nf4_run(const std::uint8_t* packed, __m512i table) {
  constexpr int kMaskThenSet = 0xea;  // (a & b) | c
  const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  const __m512i turned = _mm512_multishift_epi64_epi8(_mm512_loadu_si512(kNf4Bits.at), codes);
  const __m512i places = _mm512_ternarylogic_epi32(turned, _mm512_set1_epi8(0x1e), _mm512_set1_epi16(half == 0 ? 0x0100 : 0x2120), kMaskThenSet);
  return _mm512_permutexvar_epi8(places, table);
}

// Values [index, index + 32) of a weight as pairs along its rows (nf4: all there, in the order of kNf4Pairs), zeros beyond `left` values.
// table: of an NF4 weight's block there.
inline __m512i stored_run(const Matrix& w, std::int64_t index, std::int64_t left, __m512i table) {
  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  if (w.dtype == Dtype::nf4) return nf4_run(bytes + index / 2, table);
  return _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : (1u << left) - 1u, bytes + 2 * index);
}

// The table of the block that holds value `index`; any for a weight without.
inline __m512i stored_table(const Matrix& w, std::int64_t index) {
  return w.dtype == Dtype::nf4 ? code_words(w.nf4, index / 64) : _mm512_setzero_si512();
}

// Where _mm512_permutex2var_epi16 finds, in the runs of two rows, their values 16 · half, 16 · half + 1, …: the first row's, the second's, in turn.
struct InterleavePlaces {
  std::int16_t at[2][32];  // [half]
  constexpr explicit InterleavePlaces(bool nf4) : at{} {
    for (int place = 0; place < 32; ++place) {
      const int column = nf4 ? 2 * kNf4Pairs[place / 2] + place % 2 : place;
      at[column / 16][2 * (column % 16)] = static_cast<std::int16_t>(place);
      at[column / 16][2 * (column % 16) + 1] = static_cast<std::int16_t>(32 + place);
    }
  }
};
inline constexpr InterleavePlaces kPlainPlaces{false}, kNf4Places{true};

}  // namespace
}  // namespace engine
