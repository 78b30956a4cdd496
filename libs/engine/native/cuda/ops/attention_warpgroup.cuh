// attention_warpgroup.cuh: tiles in shared memory as the products of warpgroups read them, and the products that attention is made of. (runtime/warpgroup.h)
//   A tile is bf16 [Rows][D], D 64 or 128, as D / 64 slabs of [Rows][64] one after another: a slab's rows are 128 bytes with their chunks permuted.
//   Blocks are two groups of four warps. Each group owns 64 rows of what its block computes, and thread (w, lane) of it rows 16·w + lane / 4 and 8 below.
#pragma once

#include "cuda/ops/attention_tile.cuh"
#include "cuda/runtime/warpgroup.h"

namespace engine::cuda::attention {

inline constexpr int kGroups = 2;
inline constexpr int kGroupRows = 64;
inline constexpr int kGroupThreads = kGroups * kWarpgroup;

// The first of the 64 rows of this thread's group. Taken from one lane, because descriptors belong into registers that the compiler knows to be the same
// for a whole warp.
ENGINE_DEVICE int own_group_row() { return static_cast<int>(shuffle(threadIdx.x / kWarpgroup, 0)) * kGroupRows; }

// Where chunk `chunk` (8 columns) of a row begins in its tile, in elements.
template <int Rows>
ENGINE_DEVICE int swizzled(int row, int chunk) {
  return (chunk / 8 * Rows + row) * 64 + ((chunk % 8 ^ row % 8) << 3);
}

// Starts copying rows first … first + Rows − 1 of `source` into the tile; rows at or beyond `end` become zeros. All threads of the block call it.
template <int D, int Rows>
ENGINE_DEVICE void load_swizzled(bf16* tile, const bf16* source, std::int64_t stride, int first, int end) {
  constexpr int chunks = D / 8, rows = kGroupThreads / chunks;  // at once: a multiple of 8, so that all of a thread's chunks have the same place in a row
  const int row = static_cast<int>(threadIdx.x) / chunks, chunk = static_cast<int>(threadIdx.x) % chunks;
  bf16* to = tile + swizzled<Rows>(row, chunk);
  const bf16* from = source + (std::int64_t{first} + row) * stride + chunk * 8;
  const std::int64_t step = rows * stride;
  if (first + Rows <= end) {  // nearly always, and then a copy takes two instructions and not eight
#pragma unroll
    for (int r = 0; r < Rows; r += rows) {
      copy_async16(to + r * 64, from);
      from += step;
    }
  } else {
#pragma unroll 1
    for (int r = 0; r < Rows; r += rows) {
      const bool inside = first + row + r < end;
      copy_async16(to + r * 64, inside ? from : source, inside ? 16 : 0);
      from += step;
    }
  }
}

// The tile from row `row` on as an operand whose products sum along its rows, and as one whose products sum over its rows.
template <int Rows>
ENGINE_DEVICE std::uint64_t along_rows(const bf16* tile, int row = 0) {
  return matrix_descriptor(tile + row * 64, 16, 1024);
}
template <int Rows>
ENGINE_DEVICE std::uint64_t across_rows(const bf16* tile) {
  return matrix_descriptor(tile, Rows * 128, 1024);
}

// Starts s [64, N] = a·bᵀ over D columns; a and b are along_rows of tiles of RowsA and RowsB rows.
template <int D, int RowsA, int RowsB, int F>
ENGINE_DEVICE void start_scores(float (&s)[F][4], std::uint64_t a, std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
    multiply_group<false>(s, further(a, k / 4 * RowsA * 128 + k % 4 * 32), further(b, k / 4 * RowsB * 128 + k % 4 * 32), k > 0);
}

// Starts d [64, D] += p [64, 16·K]·b; b is across_rows of a tile.
template <int F, int K>
ENGINE_DEVICE void start_sums(float (&d)[F][4], const std::uint32_t (&p)[K][4], std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < K; ++k) multiply_group<true>(d, p[k], further(b, k * 2048), true);
}

// The A fragments of a product's result.
template <int F>
ENGINE_DEVICE void to_fragments(std::uint32_t (&a)[F / 2][4], const float (&c)[F][4]) {
#pragma unroll
  for (int n = 0; n < F / 2; ++n) to_a(a[n], c[2 * n], c[2 * n + 1]);
}

// Writes the group's 64 rows of sums (times `scale`: [0] for this thread's first row, [1] for its second) as bf16 to rows row … row + 63 of the tile, then
// to global rows first + row …, those before `end` only. Nobody reads those rows of the tile any more.
template <int D, int Rows>
ENGINE_DEVICE void store_swizzled(const float (&c)[D / 8][4], const float (&scale)[2], bf16* tile, int row, bf16* out, std::int64_t stride, int first,
                                  int end) {
  const int lane = static_cast<int>(lane_id()), g = lane / 4, p = 2 * (lane % 4);
  row += static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16;  // each warp stores what it wrote
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    *reinterpret_cast<std::uint32_t*>(tile + swizzled<Rows>(row + g, n) + p) = pack(c[n][0] * scale[0], c[n][1] * scale[0]);
    *reinterpret_cast<std::uint32_t*>(tile + swizzled<Rows>(row + g + 8, n) + p) = pack(c[n][2] * scale[1], c[n][3] * scale[1]);
  }
  sync_warp();
  constexpr int chunks = D / 8;
#pragma unroll
  for (int i = lane; i < 16 * chunks; i += kWarp) {
    const int r = row + i / chunks, chunk = i % chunks;
    if (first + r < end) store16(out + (std::int64_t{first} + r) * stride + chunk * 8, load16(tile + swizzled<Rows>(r, chunk)));
  }
}

}  // namespace engine::cuda::attention
