// gemm_amx_simd.h: the GemmKernel of tdpbf16ps: 32 x 32 outputs as two by two tile registers, 1024 multiply-adds per 16 cycles and tile.
//   A panel is cut into steps of 32 depths. a: [step][half][16 rows][32 depths]; b: [step][half][16 pairs][16 columns][2], both bf16,
//   so that every tile register loads 16 rows of 64 bytes that lie one after another.
#pragma once

#include "ops/gemm_bf16_simd.h"
#include "ops/stored_pairs_simd.h"

namespace engine {
namespace {
namespace amx {

constexpr int kTileRows = 32, kTileCols = 32, kStep = 32;
constexpr std::int64_t kDepthBlock = 1024;
constexpr int kHalfBytes = 16 * 64, kStepBytes = 2 * kHalfBytes;

void pack_a(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kStep)
    for (int half = 0; half < 2; ++half) {
      __m512i words[16];
      load_pairs_by_row(source + 16 * half * stride + d * depth_stride, stride, depth_stride, count - 16 * half, depth - d, words);
      auto* out = static_cast<std::uint8_t*>(panel) + d / kStep * kStepBytes + half * kHalfBytes;
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + 64 * i, words[i]);
    }
}

void pack_b(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kStep)
    for (int half = 0; half < 2; ++half) {
      __m512i words[16];
      load_pairs_by_depth(source + 16 * half * stride + d * depth_stride, stride, depth_stride, count - 16 * half, depth - d, words);
      auto* out = static_cast<std::uint8_t*>(panel) + d / kStep * kStepBytes + half * kHalfBytes;
      for (int p = 0; p < 16; ++p) _mm512_storeu_si512(out + 64 * p, words[p]);
    }
}

// The same panel of b from a stored weight.
void pack_stored(const Matrix& w, bool transposed, std::int64_t first, int count, std::int64_t at, std::int64_t depth, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kStep)
    for (int half = 0; half < 2; ++half) {
      __m512i words[16];
      stored_pairs_by_depth(w, transposed, first + 16 * half, count - 16 * half, at + d, depth - d, words);
      auto* out = static_cast<std::uint8_t*>(panel) + d / kStep * kStepBytes + half * kHalfBytes;
      for (int p = 0; p < 16; ++p) _mm512_storeu_si512(out + 64 * p, words[p]);
    }
}

// Registers 0-3: sums; 4, 5: halves of a; 6, 7: halves of b. All 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig{};
static_assert(sizeof(TileConfig) == 64);

// sums[32][32] from as many halves as the tile has rows and columns.
template <bool two_rows, bool two_cols>
void multiply(std::int64_t depth, const std::uint8_t* a, const std::uint8_t* b, float* sums) {
  ENGINE_TILE_ZERO(0);
  if constexpr (two_cols) ENGINE_TILE_ZERO(1);
  if constexpr (two_rows) ENGINE_TILE_ZERO(2);
  if constexpr (two_rows && two_cols) ENGINE_TILE_ZERO(3);
  for (std::int64_t d = 0; d < depth; d += kStep) {
    ENGINE_TILE_LOAD(6, b, 64);
    ENGINE_TILE_LOAD(4, a, 64);
    ENGINE_TILE_DOT(0, 4, 6);
    if constexpr (two_cols) {
      ENGINE_TILE_LOAD(7, b + kHalfBytes, 64);
      ENGINE_TILE_DOT(1, 4, 7);
    }
    if constexpr (two_rows) {
      ENGINE_TILE_LOAD(5, a + kHalfBytes, 64);
      ENGINE_TILE_DOT(2, 5, 6);
      if constexpr (two_cols) ENGINE_TILE_DOT(3, 5, 7);
    }
    a += kStepBytes;
    b += kStepBytes;
  }
  constexpr int kRowBytes = kTileCols * 4;
  ENGINE_TILE_STORE(0, sums, kRowBytes);
  if constexpr (two_cols) ENGINE_TILE_STORE(1, sums + 16, kRowBytes);
  if constexpr (two_rows) ENGINE_TILE_STORE(2, sums + 16 * kTileCols, kRowBytes);
  if constexpr (two_rows && two_cols) ENGINE_TILE_STORE(3, sums + 16 * kTileCols + 16, kRowBytes);
}

void tile(std::int64_t depth, const void* a, const void* b, float* c, std::int64_t stride, int rows, int cols, float alpha, const float* bias,
          bool accumulate) {
  alignas(64) float sums[kTileRows * kTileCols];
  const auto* left = static_cast<const std::uint8_t*>(a);
  const auto* right = static_cast<const std::uint8_t*>(b);
  // Configured and released here, so that no thread keeps tile state the system would have to save at every switch.
  ENGINE_TILE_CONFIGURE(&kTileConfig);
  if (rows > 16)
    cols > 16 ? multiply<true, true>(depth, left, right, sums) : multiply<true, false>(depth, left, right, sums);
  else
    cols > 16 ? multiply<false, true>(depth, left, right, sums) : multiply<false, false>(depth, left, right, sums);
  ENGINE_TILE_RELEASE();
  const Vec scale = broadcast(alpha);
  for (int r = 0; r < rows; ++r) {
    finish(load(sums + r * kTileCols), c + r * stride, cols, scale, bias, accumulate);
    if (cols > 16)
      finish(load(sums + r * kTileCols + 16), c + r * stride + 16, cols - 16, scale, bias != nullptr ? bias + 16 : nullptr, accumulate);
  }
}

constexpr GemmKernel kKernel = {.rows = kTileRows,
                                .cols = kTileCols,
                                .a_width = kTileRows,
                                .depth_step = kStep,
                                .element_bytes = 2,
                                .depth_block = kDepthBlock,
                                .pack_a = pack_a,
                                .pack_b = pack_b,
                                .lanes = 0,
                                .pack_a_lanes = nullptr,
                                .pack_b_lanes = nullptr,
                                .pack_stored = pack_stored,
                                .tile = tile};

}  // namespace amx
}  // namespace
}  // namespace engine
