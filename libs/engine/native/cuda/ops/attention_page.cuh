// attention_page.cuh: one page of keys and values in the registers of a warp, and the products of few query heads with it.
//   Heads are columns of the second product and rows of the first, so that the probabilities go from one to the other where they are:
//     S [heads 16, tokens 8]  = Q [16, d] · Kᵀ      its C fragment, lane 4·g + t: head g (and g + 8), tokens 2t, 2t + 1
//     Oᵀ [d 16, heads 8]     += Vᵀ [d, tokens 16] · Pᵀ      its B fragment: tokens 2t, 2t + 1 and 2t + 8, 2t + 9 of head g: two of those, rounded
//   A sum over d may run through d in any order, and rows of Oᵀ may be any d: a lane reads 16 bytes of a token at once and takes its pairs as they come.
//     keys    token g or g + 8: values 32·piece + 8t … + 7 are columns (2t, 2t + 1, 2t + 8, 2t + 9) of two steps
//     values  four tokens: values 64·piece + 8g … + 7 are rows g and g + 8 of four blocks; bytes are exchanged between pairs of tokens
//   So nothing passes through shared memory. Small heads have pieces of 8 or 4 bytes.
#pragma once

#include "cuda/ops/attention_tile.cuh"
#include "cuda/ops/paged_attention.h"

namespace engine::cuda::attention {

inline constexpr int kPage = static_cast<int>(kPageTokens), kHeads = 8;  // tokens; heads of one block of Oᵀ
static_assert(kPage == 16, "a page is the 16 tokens of one product with the values");

// kBytes as words: of shared memory, or of device memory that other kernels of the stream write (not kept in the first-level cache).
enum class From : std::uint8_t { shared, device };
template <int kBytes, From kFrom>
ENGINE_DEVICE void load_words(const bf16* from, std::uint32_t (&to)[kBytes / 4]) {
  if constexpr (kBytes == 16) {
    const uint4 v = kFrom == From::device ? load16_passing(from) : load16(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else if constexpr (kBytes == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    to[0] = *reinterpret_cast<const std::uint32_t*>(from);
  }
}

// The queries of 8·N heads in shared memory, rows of D values.
template <int D>
struct Queries {
  static constexpr int kStride = D + 32;  // neighbouring rows begin 16 banks apart
};

template <int D>
struct Page {
  static constexpr int kKey = D % 32 == 0 ? 8 : 4, kKeyPieces = D / (4 * kKey);                           // values of a piece; pieces
  static constexpr int kValue = D % 64 == 0 ? 8 : D % 32 == 0 ? 4 : 2, kValuePieces = D / (8 * kValue);
  static constexpr int kBlocks = D / 16;  // of Oᵀ

  std::uint32_t keys[2][kKeyPieces][kKey / 2];        // of tokens g and g + 8
  std::uint32_t values[4][kValuePieces][kValue / 2];  // of tokens 2t, 2t + 1, 2t + 8, 2t + 9

  // The token of values[i], and the first column of its piece.
  static ENGINE_DEVICE int token(int i) { return 2 * (static_cast<int>(lane_id()) % 4) + i % 2 + i / 2 * 8; }
  static ENGINE_DEVICE int key_column(int piece) { return (piece * 4 + static_cast<int>(lane_id()) % 4) * kKey; }
  static ENGINE_DEVICE int value_column(int piece) { return (piece * 8 + static_cast<int>(lane_id()) / 4) * kValue; }

  // `from` [16, D]
  ENGINE_DEVICE void load_keys(const bf16* from) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int p = 0; p < kKeyPieces; ++p) load_words<2 * kKey, From::device>(from + (static_cast<int>(lane_id()) / 4 + 8 * i) * D + key_column(p), keys[i][p]);
  }
  ENGINE_DEVICE void load_values(const bf16* from) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int p = 0; p < kValuePieces; ++p) load_words<2 * kValue, From::device>(from + token(i) * D + value_column(p), values[i][p]);
  }

  // Puts one token's key and value, in shared memory, in place of what was loaded.
  ENGINE_DEVICE void replace(int slot, const bf16* key, const bf16* value) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (static_cast<int>(lane_id()) / 4 + 8 * i == slot)
#pragma unroll
        for (int p = 0; p < kKeyPieces; ++p) load_words<2 * kKey, From::shared>(key + key_column(p), keys[i][p]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (token(i) == slot)
#pragma unroll
        for (int p = 0; p < kValuePieces; ++p) load_words<2 * kValue, From::shared>(value + value_column(p), values[i][p]);
  }
  // Zeros for the values of tokens from `count` on: what was never written may be anything, and 0 · NaN is NaN.
  ENGINE_DEVICE void clear_values(int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (token(i) >= count)
#pragma unroll
        for (int p = 0; p < kValuePieces; ++p)
#pragma unroll
          for (int w = 0; w < kValue / 2; ++w) values[i][p][w] = 0;
  }

  // s[n][2·half + j] = q[g + 8·half] · key[8n + 2t + j]. (warp)
  template <int N>
  ENGINE_DEVICE void scores(const bf16* queries, float (&s)[2][4]) const {
    const int lane = static_cast<int>(lane_id());
    float parts[2][2][4] = {};  // of even and odd steps: chains of products half as long
#pragma unroll
    for (int p = 0; p < kKeyPieces; ++p) {
      std::uint32_t q[2][kKey / 2] = {};
#pragma unroll
      for (int half = 0; half < N; ++half)
        load_words<2 * kKey, From::shared>(queries + (lane / 4 + 8 * half) * Queries<D>::kStride + key_column(p), q[half]);
#pragma unroll
      for (int w = 0; w < kKey / 2; w += 2) {
        const std::uint32_t a[4] = {q[0][w], q[1][w], q[0][w + 1], q[1][w + 1]};
#pragma unroll
        for (int n = 0; n < 2; ++n) mma(parts[(p * kKey / 4 + w / 2) % 2][n], a, keys[n][p][w], keys[n][p][w + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = parts[0][n][i] + parts[1][n][i];
  }

  // o[block][n] += Vᵀ · Pᵀ for heads 8n … 8n + 7; p as scores has s. (warp)
  template <int N>
  ENGINE_DEVICE void add_values(const float (&p)[2][4], float (&o)[kBlocks][N][4]) const {
    std::uint32_t b[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) b[n][i] = pack(p[i][2 * n], p[i][2 * n + 1]);
#pragma unroll
    for (int piece = 0; piece < kValuePieces; ++piece)
#pragma unroll
      for (int w = 0; w < kValue / 2; ++w) {
        const std::uint32_t v[4] = {values[0][piece][w], values[1][piece][w], values[2][piece][w], values[3][piece][w]};
        const std::uint32_t a[4] = {permute_bytes(v[0], v[1], 0x5410), permute_bytes(v[0], v[1], 0x7632), permute_bytes(v[2], v[3], 0x5410),
                                    permute_bytes(v[2], v[3], 0x7632)};
#pragma unroll
        for (int n = 0; n < N; ++n) mma(o[piece * kValue / 2 + w][n], a, b[n][0], b[n][1]);
      }
  }

  // Sums of heads 8n + 2t and 8n + 2t + 1 to rows [8·N][stride] of floats. Every other group of four lanes begins with the second head: with a stride of
  // 4 modulo 8 the lanes of one access then lie in different banks.
  template <int N>
  static ENGINE_DEVICE void store_sums(const float (&o)[kBlocks][N][4], float* to, int stride) {
    const int t = static_cast<int>(lane_id()) % 4, turned = static_cast<int>(lane_id()) / 4 % 2;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int piece = 0; piece < kValuePieces; ++piece) {
          float* row = to + (8 * n + 2 * t + (j ^ turned)) * stride + value_column(piece);
          float x[kValue];
#pragma unroll
          for (int i = 0; i < kValue; ++i) {
            const float(&pair)[4] = o[piece * kValue / 2 + i / 2][n];
            x[i] = turned != 0 ? pair[i % 2 * 2 + 1 - j] : pair[i % 2 * 2 + j];
          }
          if constexpr (kValue >= 4) {
#pragma unroll
            for (int i = 0; i < kValue; i += 4) store_floats4(row + i, x + i);
          } else {
            row[0] = x[0];
            row[1] = x[1];
          }
        }
  }
};

}  // namespace engine::cuda::attention
