// gemm_avx512bf16.cpp: the GemmKernel of vdpbf16ps: 14 x 32 tiles, panels of bf16 pairs.
#include "ops/gemm_bf16_simd.h"

namespace engine {
namespace {

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

inline __m512bh as_bf16(__m512i words) {
  __m512bh result;
  __builtin_memcpy(&result, &words, sizeof result);
  return result;
}

template <int rows>
void tile_rows(std::int64_t depth, const std::int32_t* a, const std::int32_t* b, float* c, std::int64_t stride, int cols, float alpha,
               const float* bias, bool accumulate) {
  __m512 left[rows], right[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) left[r] = right[r] = _mm512_setzero_ps();
  for (std::int64_t d = 0; d < depth; d += 2) {
    const __m512bh b0 = as_bf16(_mm512_loadu_si512(b)), b1 = as_bf16(_mm512_loadu_si512(b + 16));
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512bh x = as_bf16(_mm512_set1_epi32(a[r]));
      left[r] = _mm512_dpbf16_ps(left[r], x, b0);
      right[r] = _mm512_dpbf16_ps(right[r], x, b1);
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

void tile(std::int64_t depth, const void* a, const void* b, float* c, std::int64_t stride, int rows, int cols, float alpha, const float* bias,
          bool accumulate) {
  tile_of<kTileRows>(rows, depth, static_cast<const std::int32_t*>(a), static_cast<const std::int32_t*>(b), c, stride, cols, alpha, bias, accumulate);
}

}  // namespace

const GemmKernel gemm_kernel_avx512bf16 = {kTileRows, kTileCols, kLeftWidth, 2, 2, 512, pack<kLeftWidth>, pack<kTileCols>, nullptr, tile};

}  // namespace engine
