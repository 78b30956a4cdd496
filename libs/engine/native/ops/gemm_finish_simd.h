// gemm_finish_simd.h: how a tile's sums reach the result, the same for every kernel: c ← alpha · sum (+ c) (+ bias).
#pragma once

#include <cstddef>

#include "ops/gemm_kernel.h"
#include "ops/simd.h"

namespace engine {
namespace {

// The lines that rows of a tile, at most two vectors wide, will be written to.
inline void prefetch_rows(const float* c, std::int64_t stride, int rows) {
  for (int r = 0; r < rows; ++r) {
    __builtin_prefetch(c + r * stride, 1);
    __builtin_prefetch(c + r * stride + kLanes, 1);
  }
}

// tile(a, c, rows) for the tiles of a column, one after another.
template <class Tile>
inline void for_each_tile(const TileColumn& column, int tile_rows, Tile&& tile) {
  const auto* a = static_cast<const std::byte*>(column.a);
  float* c = column.c;
  for (std::int64_t left = column.rows; left > 0; left -= tile_rows, a += column.a_stride, c += tile_rows * column.stride) {
    const int rows = left < tile_rows ? static_cast<int>(left) : tile_rows;
    if (column.prefetch) prefetch_rows(c, column.stride, rows);
    tile(static_cast<const void*>(a), c, rows);
  }
}

// One vector's share, count <= kLanes lanes of it; nothing when count <= 0.
inline void finish(Vec product, float* c, std::int64_t count, Vec alpha, const float* bias, bool accumulate) {
  if (count <= 0) return;
  const std::int64_t n = count < kLanes ? count : kLanes;
  Vec value = alpha * product;
  if (accumulate) value = value + load_first(c, n);
  if (bias != nullptr) value = value + load_first(bias, n);
  store_first(c, value, n);
}

// All columns of `rows` rows; the choices are made once, so that nothing but arithmetic is left between the stores.
template <int rows, bool accumulate, bool with_bias>
inline void write_full_tile(const Register (&left)[rows], const Register (&right)[rows], float* c, std::int64_t stride, Vec alpha, const float* bias) {
  const Vec bias_left = with_bias ? load(bias) : broadcast(0), bias_right = with_bias ? load(bias + kLanes) : broadcast(0);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    float* out = c + r * stride;
    Vec a = alpha * Vec{left[r]}, b = alpha * Vec{right[r]};
    if constexpr (accumulate) {
      a = a + load(out);
      b = b + load(out + kLanes);
    }
    if constexpr (with_bias) {
      a = a + bias_left;
      b = b + bias_right;
    }
    store(out, a);
    store(out + kLanes, b);
  }
}

template <int rows>
inline void write_tile(const Register (&left)[rows], const Register (&right)[rows], float* c, std::int64_t stride, int cols, float alpha, const float* bias,
                       bool accumulate) {
  const Vec scale = broadcast(alpha);
  if (cols == 2 * kLanes) {
    if (bias != nullptr)
      accumulate ? write_full_tile<rows, true, true>(left, right, c, stride, scale, bias)
                 : write_full_tile<rows, false, true>(left, right, c, stride, scale, bias);
    else
      accumulate ? write_full_tile<rows, true, false>(left, right, c, stride, scale, bias)
                 : write_full_tile<rows, false, false>(left, right, c, stride, scale, bias);
    return;
  }
  alignas(64) float sums[rows][2 * kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    store(sums[r], Vec{left[r]});
    store(sums[r] + kLanes, Vec{right[r]});
  }
  for (int r = 0; r < rows; ++r) {
    finish(load(sums[r]), c + r * stride, cols, scale, bias, accumulate);
    finish(load(sums[r] + kLanes), c + r * stride + kLanes, cols - kLanes, scale, bias != nullptr ? bias + kLanes : nullptr, accumulate);
  }
}

}  // namespace
}  // namespace engine
