// attention_tile.cuh: tiles of rows in shared memory, and the fragments that mma.m16n8k16 reads from them.
//   A tile is bf16 [rows][D], D a multiple of 16. Within a row, 16-byte chunks are permuted so that the eight rows which one ldmatrix phase reads in the
//   same column lie in different banks.
//   The C fragments of two neighbouring 16×8 blocks, rounded to bf16, are the A fragment of one 16×16 block.
#pragma once

#include <cstdint>

#include "core/bf16.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda::attention {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarp;
inline constexpr float kLog2e = 1.44269504088896341f;

// Where chunk `chunk` (8 columns) of a row begins in its tile, in elements.
template <int D>
ENGINE_DEVICE int chunk_at(int row, int chunk) {
  constexpr int chunks = D / 8;
  const int turn = chunks % 8 == 0 ? row & 7 : chunks % 4 == 0 ? (row >> 1) & 3 : (row >> 2) & 1;
  return row * D + ((chunk ^ turn) << 3);
}

// Starts copying rows first … first + Rows − 1 of `source` into the tile; rows at or beyond `end` become zeros. All threads of the block call it.
template <int D, int Rows>
ENGINE_DEVICE void load_tile(bf16* tile, const bf16* source, std::int64_t stride, int first, int end) {
  constexpr int chunks = D / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Rows * chunks; i += kThreads) {
    const int row = i / chunks, chunk = i % chunks;
    const bool inside = first + row < end;
    copy_async16(tile + chunk_at<D>(row, chunk), source + (inside ? std::int64_t{first} + row : std::int64_t{first}) * stride + chunk * 8, inside ? 16 : 0);
  }
}

// A fragment: rows row … row + 15, columns 16·step … 16·step + 15.
template <int D>
ENGINE_DEVICE void load_a(std::uint32_t (&a)[4], const bf16* tile, int row, int step) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4(a, tile + chunk_at<D>(row + lane % 16, 2 * step + lane / 16));
}

// Two B fragments of the transposed tile: the sum runs over columns 16·step …, outputs are rows row … row + 7 (b[0], b[1]) and row + 8 … (b[2], b[3]).
template <int D>
ENGINE_DEVICE void load_b_rows(std::uint32_t (&b)[4], const bf16* tile, int row, int step) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4(b, tile + chunk_at<D>(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// Two B fragments of the tile itself: the sum runs over rows row … row + 15, outputs are columns 16·step … + 7 (b[0], b[1]) and 16·step + 8 … (b[2], b[3]).
template <int D>
ENGINE_DEVICE void load_b_columns(std::uint32_t (&b)[4], const bf16* tile, int row, int step) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4<true>(b, tile + chunk_at<D>(row + lane % 16, 2 * step + lane / 16));
}

ENGINE_DEVICE void multiply_two(float (&c0)[4], float (&c1)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4]) {
  mma(c0, a, b[0], b[1]);
  mma(c1, a, b[2], b[3]);
}

// The A fragment of two neighbouring C fragments.
ENGINE_DEVICE void to_a(std::uint32_t (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
  a[0] = pack(c0[0], c0[1]);
  a[1] = pack(c0[2], c0[3]);
  a[2] = pack(c1[0], c1[1]);
  a[3] = pack(c1[2], c1[3]);
}

// Writes a warp's 16 rows of accumulators (times `scale` of its row: [0] for g, [1] for g + 8) to rows row … row + 15 of the tile as bf16, then to
// global rows first + row …, those before `end` only. The tile's rows must be this warp's own.
template <int D>
ENGINE_DEVICE void store_rows(const float (&c)[D / 8][4], const float (&scale)[2], bf16* tile, int row, bf16* out, std::int64_t stride, int first, int end) {
  const int lane = static_cast<int>(lane_id()), g = lane / 4, p = 2 * (lane % 4);
  sync_warp();
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    *reinterpret_cast<std::uint32_t*>(tile + chunk_at<D>(row + g, n) + p) = pack(c[n][0] * scale[0], c[n][1] * scale[0]);
    *reinterpret_cast<std::uint32_t*>(tile + chunk_at<D>(row + g + 8, n) + p) = pack(c[n][2] * scale[1], c[n][3] * scale[1]);
  }
  sync_warp();
  constexpr int chunks = D / 8;
  for (int i = lane; i < 16 * chunks; i += kWarp) {
    const int r = row + i / chunks, chunk = i % chunks;
    if (first + r < end)
      store16(out + (std::int64_t{first} + r) * stride + chunk * 8, load16(tile + chunk_at<D>(r, chunk)));
  }
}

ENGINE_DEVICE int lesser(int a, int b) { return a < b ? a : b; }

// What turns a score, q·k or the tanh of its soft cap, into units of log 2.
ENGINE_DEVICE float score_units(float scale, float softcap) { return (softcap > 0 ? softcap : scale) * kLog2e; }

// Sees key j from query i of the same sequence, window 0 meaning no limit.
ENGINE_DEVICE bool sees(int query, int key, int window) { return key <= query && (window == 0 || query - key < window); }

// The first key that the oldest query of a tile sees, rounded down to whole key blocks counted from the sequence's first token.
ENGINE_DEVICE int first_key_block(int query, int first, int window, int block) {
  if (window == 0 || query - window + 1 <= first) return first;
  return first + (query - window + 1 - first) / block * block;
}

}  // namespace engine::cuda::attention
