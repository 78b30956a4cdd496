// tile_vector_simd.h: linear for up to 16 rows with tdpbf16ps: the weights are the left operand.
//   A tile of 16 weight rows by 32 depths lies as the weight does, so bf16 is loaded in place and NF4 is looked up without a transpose; x is
//   packed once as the right operand. Every sum is the one that gemm_amx_simd.h makes with the operands the other way round, bit for bit:
//   the instruction's products and order do not depend on the sides.
#pragma once

#include "ops/gemm_amx_simd.h"

namespace engine {
namespace {
namespace amx {

constexpr int kFewRows = 16, kChunkSteps = 8;

std::int64_t few_rows_bytes(std::int64_t depth) { return (depth + kStep - 1) / kStep * kHalfBytes; }

// packed[step][16 pairs][16 rows of x][2]
void pack_few_rows(ConstRows x, void* packed) {
  for (std::int64_t d = 0; d < x.cols; d += kStep) {
    __m512i words[16];
    load_pairs_by_depth(x.data + d, x.stride, 1, static_cast<int>(x.rows), x.cols - d, words);
    for (int p = 0; p < 16; ++p) _mm512_storeu_si512(static_cast<std::uint8_t*>(packed) + d / kStep * kHalfBytes + 64 * p, words[p]);
  }
}

// Weight rows [first, first + count), count <= 16, at depths [at, at + depth), depth at most a chunk: tiles of 16 rows of 64 bytes.
inline void look_up_tiles(const Matrix& w, std::int64_t first, int count, std::int64_t at, std::int64_t depth, std::uint8_t* tiles) {
  for (int i = 0; i < count; ++i)
    for (std::int64_t d = 0; d < depth; d += kStep)
      _mm512_store_si512(tiles + d / kStep * kHalfBytes + 64 * i, stored_run(w, first + i, at + d, depth - d));
}

// y[t, first … last) (+)= x[t] · w[n] + bias[n].
void few_rows(const Matrix& w, std::int64_t first, std::int64_t last, const void* packed_x, const float* bias, Rows y, bool accumulate) {
  // Two chunks of looked-up tiles take turns, so that no load waits for the stores just before it. Rows that a weight lacks stay zero.
  alignas(64) std::uint8_t chunks[2][kChunkSteps * kHalfBytes] = {};
  alignas(64) float sums[16 * 16];
  const auto* x = static_cast<const std::uint8_t*>(packed_x);
  const bool in_place = w.dtype == Dtype::bf16;
  for (std::int64_t n = first; n < last; n += 16) {
    const int count = static_cast<int>(last - n < 16 ? last - n : 16);
    for (std::int64_t pass = 0; pass < w.cols; pass += kDepthBlock) {
      const std::int64_t end = pass + kDepthBlock < w.cols ? pass + kDepthBlock : w.cols;
      ENGINE_TILE_CONFIGURE(&kTileConfig);
      ENGINE_TILE_ZERO(0);
      for (std::int64_t at = pass; at < end; at += kChunkSteps * kStep) {
        const std::int64_t depth = at + kChunkSteps * kStep < end ? kChunkSteps * kStep : end - at;
        if (in_place && count == 16 && depth % kStep == 0) {
          for (std::int64_t d = at; d < at + depth; d += kStep) {
            ENGINE_TILE_LOAD(4, static_cast<const std::uint8_t*>(w.data) + 2 * (n * w.cols + d), 2 * w.cols);
            ENGINE_TILE_LOAD(6, x + d / kStep * kHalfBytes, 64);
            ENGINE_TILE_DOT(0, 4, 6);
          }
          continue;
        }
        std::uint8_t* tiles = chunks[at / (kChunkSteps * kStep) % 2];
        look_up_tiles(w, n, count, at, depth, tiles);
        for (std::int64_t d = 0; d < depth; d += kStep) {
          ENGINE_TILE_LOAD(4, tiles + d / kStep * kHalfBytes, 64);
          ENGINE_TILE_LOAD(6, x + (at + d) / kStep * kHalfBytes, 64);
          ENGINE_TILE_DOT(0, 4, 6);
        }
      }
      ENGINE_TILE_STORE(0, sums, 64);
      ENGINE_TILE_RELEASE();
      for (int i = 0; i < count; ++i)
        for (std::int64_t t = 0; t < y.rows; ++t) {
          float value = sums[16 * i + t];
          float* out = y.data + t * y.stride + n + i;
          if (accumulate || pass > 0) value = value + *out;
          if (bias != nullptr && pass == 0) value = value + bias[n + i];
          *out = value;
        }
    }
  }
}

constexpr FewRows kFewRowsKernel = {kFewRows, few_rows_bytes, pack_few_rows, few_rows};

}  // namespace amx
}  // namespace
}  // namespace engine
