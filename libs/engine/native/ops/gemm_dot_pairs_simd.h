// gemm_dot_pairs_simd.h: the GemmKernel of vdpbf16ps: 14 x 32 tiles, panels of bf16 pairs.
#pragma once

#include "ops/gemm_bf16_simd.h"

namespace engine {
namespace {
namespace dot_pairs_kernel {

constexpr int kTileRows = 14, kTileCols = 32, kLeftWidth = 16;

// panel[d / 2][width] words.
template <int width>
void pack(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kPairDepths) {
    const std::int64_t left = depth - d, pairs = left < kPairDepths ? (left + 1) / 2 : 16;
    for (int first = 0; first < width; first += 16) {
      __m512i words[16];
      load_pairs_by_depth(source + first * stride + d * depth_stride, stride, depth_stride, count - first, left, words);
      for (std::int64_t p = 0; p < pairs; ++p) _mm512_storeu_si512(static_cast<std::int32_t*>(panel) + (d / 2 + p) * width + first, words[p]);
    }
  }
}

template <int rows>
void tile_rows(std::int64_t depth, const std::int32_t* a, const std::int32_t* b, float* c, std::int64_t stride, int cols, float alpha,
               const float* bias, bool accumulate) {
  __m512 left[rows], right[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) left[r] = right[r] = _mm512_setzero_ps();
  for (std::int64_t d = 0; d < depth; d += 2) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512i x = _mm512_set1_epi32(a[r]);
      left[r] = dot_pairs(left[r], x, b0);
      right[r] = dot_pairs(right[r], x, b1);
    }
    a += kLeftWidth;
    b += kTileCols;
  }
  write_tile<rows>(left, right, c, stride, cols, alpha, bias, accumulate);
}

template <int most>
void tile_of(int rows, std::int64_t depth, const std::int32_t* a, const std::int32_t* b, float* c, std::int64_t stride, int cols, float alpha,
             const float* bias, bool accumulate) {
  if constexpr (most > 0) {
    if (rows == most) return tile_rows<most>(depth, a, b, c, stride, cols, alpha, bias, accumulate);
    tile_of<most - 1>(rows, depth, a, b, c, stride, cols, alpha, bias, accumulate);
  }
}

void tiles(const TileColumn& t) {
  for_each_tile(t, kTileRows, [&](const void* a, float* c, int rows) {
    tile_of<kTileRows>(rows, t.depth, static_cast<const std::int32_t*>(a), static_cast<const std::int32_t*>(t.b), c, t.stride, t.cols, t.alpha, t.bias,
                       t.accumulate);
  });
}

constexpr GemmKernel kKernel = {.rows = kTileRows,
                                .cols = kTileCols,
                                .a_width = kLeftWidth,
                                .depth_step = 2,
                                .element_bytes = 2,
                                .depth_block = 512,
                                .pack_a = pack<kLeftWidth>,
                                .pack_b = pack<kTileCols>,
                                .pack_a_for_nf4 = nullptr,
                                .lanes = 0,
                                .pack_a_lanes = nullptr,
                                .pack_b_lanes = nullptr,
                                .pack_stored = nullptr,
                                .tiles = tiles};

}  // namespace dot_pairs_kernel
}  // namespace
}  // namespace engine
