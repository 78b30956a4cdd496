// gemm_fma_simd.h: the GemmKernel of fp32 multiply-adds: tiles of kTileRows rows by two vectors, panels of fp32.
//   AVX-512: 14 x 32, 28 of 32 registers are sums. AVX2: 6 x 16, 12 of 16. Each depth costs two loads of b and a broadcast per row.
#pragma once

#include "ops/gemm_finish_simd.h"
#include "ops/gemm_kernel.h"
#include "ops/simd.h"
#include "ops/transpose_simd.h"

namespace engine {
namespace {

#if defined(__AVX512F__)
inline constexpr int kTileRows = 14, kLeftWidth = 16;
#else
inline constexpr int kTileRows = 6, kLeftWidth = 8;
#endif
inline constexpr int kTileCols = 2 * static_cast<int>(kLanes);

template <bool round>
inline Vec operand(Vec x) {
  if constexpr (round) return round_bf16(x);
  return x;
}

// panel[d][0 … width) from rows that are contiguous in d: kLanes x kLanes blocks through registers. width is whole vectors. In the last
// vector of rows, lanes beyond `count` repeat the last row: nothing is written from what they yield.
template <int width, bool round>
void pack_transposing(const float* source, std::int64_t stride, int count, std::int64_t depth, float* panel) {
  for (int first = 0; first < width; first += static_cast<int>(kLanes)) {
    float* out = panel + first;
    if (first >= count) {  // zeros, not leftovers: a subnormal among those would slow the multiply-adds down
      for (std::int64_t d = 0; d < depth; ++d) store(out + d * width, broadcast(0));
      continue;
    }
    const float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = source + (first + i < count ? first + i : count - 1) * stride;
    std::int64_t d = 0;
    for (; d + kLanes <= depth; d += kLanes, out += kLanes * width) {
      Register block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        block[i] = operand<round>(load(rows[i] + d)).v;
        __builtin_prefetch(rows[i] + d + 8 * kLanes);  // the rows lie too far apart for the CPU to see one stream in them
      }
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(out + j * width, Vec{block[j]});
    }
    if (d == depth) continue;
    Register block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = operand<round>(load_first(rows[i] + d, depth - d)).v;
    transpose(block);
    for (std::int64_t j = 0; j < depth - d; ++j) store(out + j * width, Vec{block[j]});
  }
}

// panel[d][0 … width) from source rows that already lie that way.
template <int width, bool round>
void pack_copying(const float* source, std::int64_t depth_stride, int count, std::int64_t depth, float* panel) {
  for (std::int64_t d = 0; d < depth; ++d)
    for (int first = 0; first < width; first += static_cast<int>(kLanes)) {
      __builtin_prefetch(source + (d + 8) * depth_stride + first);
      const float* in = source + d * depth_stride + first;
      const int rows = count - first;
      const Vec x = rows >= kLanes ? load(in) : (rows > 0 ? load_first(in, rows) : broadcast(0));
      store(panel + d * width + first, operand<round>(x));
    }
}

template <int width>
void pack_fp32(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool round, void* panel) {
  auto* out = static_cast<float*>(panel);
  if (depth_stride == 1) {
    if (round)
      pack_transposing<width, true>(source, stride, count, depth, out);
    else
      pack_transposing<width, false>(source, stride, count, depth, out);
  } else {
    if (round)
      pack_copying<width, true>(source, depth_stride, count, depth, out);
    else
      pack_copying<width, false>(source, depth_stride, count, depth, out);
  }
}

// The same in the order of lane_order.h.
template <int width, bool round>
void pack_lanes_of(const float* source, std::int64_t stride, int count, std::int64_t depth, float* panel, const std::int64_t* chain_at) {
  for (int first = 0; first < width && first < count; first += static_cast<int>(kLanes)) {
    const float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = source + (first + i < count ? first + i : count - 1) * stride;
    const std::int64_t padded = lane_chain(depth, kLanes) * kLanes;
    for (std::int64_t d = 0; d < padded; d += kLanes) {
      Register block[kLanes];
      const std::int64_t left = depth - d;
      if (left >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          block[i] = operand<round>(load(rows[i] + d)).v;
          __builtin_prefetch(rows[i] + d + 8 * kLanes);
        }
      } else {
        for (int i = 0; i < kLanes; ++i) block[i] = left > 0 ? operand<round>(load_first(rows[i] + d, left)).v : broadcast(0).v;
      }
      transpose(block);
      // Depths d … d + L - 1 are one half of a step of 2L: L / 2 chains, two depths of each.
      const std::int64_t chain = d / kLanes % 2 * (kLanes / 2);
      float* out = panel + d / (2 * kLanes) * 2 * width + first;
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(out + chain_at[chain + j / 2] + j % 2 * width, Vec{block[j]});
    }
  }
}

template <int width>
void pack_lanes(const float* source, std::int64_t stride, int count, std::int64_t depth, bool round, float* panel, const std::int64_t* chain_at) {
  // Vectors of rows that the source does not have at all: zeros, for the reason above.
  for (int first = (count + static_cast<int>(kLanes) - 1) / static_cast<int>(kLanes) * static_cast<int>(kLanes); first < width; first += static_cast<int>(kLanes))
    for (int chain = 0; chain < kLanes; ++chain)
      for (std::int64_t d = 0; d < lane_chain(depth, kLanes); ++d) store(panel + chain_at[chain] + d * width + first, broadcast(0));
  if (round)
    pack_lanes_of<width, true>(source, stride, count, depth, panel, chain_at);
  else
    pack_lanes_of<width, false>(source, stride, count, depth, panel, chain_at);
}

template <int rows>
void fma_tile_rows(std::int64_t depth, const float* a, const float* b, float* c, std::int64_t stride, int cols, float alpha, const float* bias,
                   bool accumulate) {
  Register left[rows], right[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) left[r] = right[r] = broadcast(0).v;
  for (std::int64_t d = 0; d < depth; ++d) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x = broadcast(a[r]);
      left[r] = fma(x, b0, Vec{left[r]}).v;
      right[r] = fma(x, b1, Vec{right[r]}).v;
    }
    a += kLeftWidth;
    b += kTileCols;
  }
  write_tile<rows>(left, right, c, stride, cols, alpha, bias, accumulate);
}

// The tile of `rows` rows: each count has its own code, so that a short tile costs what it does.
template <int most>
void fma_tile_of(int rows, std::int64_t depth, const float* a, const float* b, float* c, std::int64_t stride, int cols, float alpha, const float* bias,
                 bool accumulate) {
  if constexpr (most > 0) {
    if (rows == most) return fma_tile_rows<most>(depth, a, b, c, stride, cols, alpha, bias, accumulate);
    fma_tile_of<most - 1>(rows, depth, a, b, c, stride, cols, alpha, bias, accumulate);
  }
}

void fma_tiles(const TileColumn& t) {
  for_each_tile(t, kTileRows, [&](const void* a, float* c, int rows) {
    fma_tile_of<kTileRows>(rows, t.depth, static_cast<const float*>(a), static_cast<const float*>(t.b), c, t.stride, t.cols, t.alpha, t.bias, t.accumulate);
  });
}

}  // namespace
}  // namespace engine
