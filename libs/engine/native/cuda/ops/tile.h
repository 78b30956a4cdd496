// tile.h: rectangles of a bf16 matrix in shared memory, and the fragments of matrix products read from them.
//   A row takes kColumns + 8 values: an odd number of 16-byte chunks, so that the 8 rows of an ldmatrix lie in 8 different groups of banks.
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {

template <int kRows, int kColumns>
struct Tile {
  static constexpr int kStride = kColumns + 8;
  static constexpr int kValues = kRows * kStride;
  static_assert(kColumns % 16 == 0, "a row is an even number of chunks");

  bf16* data;

  ENGINE_DEVICE bf16* at(int row, int column) const { return data + row * kStride + column; }

  // Begins to copy rows first_row … and columns first_column … of `from`; zeros beyond its edges. `kThreads` threads take part, this being `thread`.
  template <int kThreads>
  ENGINE_DEVICE void load(View<const bf16> from, std::int64_t first_row, std::int64_t first_column, int thread) const {
    constexpr int kChunks = kColumns / 8;
    for (int i = thread; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * 8;
      const std::int64_t r = first_row + row, c = first_column + column;
      const std::int64_t left = r < from.rows ? from.cols - c : 0;
      const int valid = left >= 8 ? 16 : left > 0 ? 2 * static_cast<int>(left) : 0;
      copy_async16(at(row, column), valid > 0 ? from.row(r) + c : from.data, valid);
    }
  }
};

// A fragment [16 m, 16 k] whose rows m lie in rows of the tile.
template <class T>
ENGINE_DEVICE void load_a(std::uint32_t (&a)[4], const T& tile, int m, int k) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4(a, tile.at(m + lane % 16, k + lane / 16 * 8));
}
// The same of a tile whose rows are k.
template <class T>
ENGINE_DEVICE void load_a_transposed(std::uint32_t (&a)[4], const T& tile, int m, int k) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4<true>(a, tile.at(k + lane / 16 * 8 + lane % 8, m + lane / 8 % 2 * 8));
}
// Two B fragments [16 k, 8 n] side by side: {b0, b1} of columns n …, {b2, b3} of columns n + 8 …; columns n lie in rows of the tile.
template <class T>
ENGINE_DEVICE void load_b(std::uint32_t (&b)[4], const T& tile, int n, int k) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4(b, tile.at(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
}
// The same of a tile whose rows are k.
template <class T>
ENGINE_DEVICE void load_b_transposed(std::uint32_t (&b)[4], const T& tile, int n, int k) {
  const int lane = static_cast<int>(lane_id());
  load_matrix4<true>(b, tile.at(k + lane / 8 % 2 * 8 + lane % 8, n + lane / 16 * 8));
}

}  // namespace engine::cuda
