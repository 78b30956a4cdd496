// column_sums.h: sums of columns over many rows in two steps: pieces of rows, then the pieces in order. What is summed is a functor's business.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {

inline constexpr unsigned kColumnThreads = 256;  // 8 threads across 64 columns, 32 down the rows
inline constexpr std::int64_t kPieceRows = 256;

inline std::int64_t column_pieces(std::int64_t rows) { return ceil_div(rows, kPieceRows); }
inline std::int64_t column_sums_workspace(std::int64_t rows, std::int64_t cols) {
  return column_pieces(rows) * cols * static_cast<std::int64_t>(sizeof(float));
}

// partial[piece][c] = Σ over the piece's rows of the term. term(row, column, out) gives the terms of 8 columns from a multiple of 8.
template <class Term>
__global__ void __launch_bounds__(kColumnThreads) sum_column_pieces(Term term, std::int64_t rows, std::int64_t cols, float* partial) {
  SHARED_ARRAY(float, sums, 32 * 64);
  const unsigned across = threadIdx.x % 8, down = threadIdx.x / 8;
  const std::int64_t column = (std::int64_t{blockIdx.y} * 8 + across) * 8;
  const std::int64_t first = std::int64_t{blockIdx.x} * kPieceRows, last = first + kPieceRows < rows ? first + kPieceRows : rows;
  float mine[8] = {};
  if (column < cols)
    for (std::int64_t row = first + down; row < last; row += 32) {
      float terms[8];
      term(row, column, terms);
#pragma unroll
      for (int i = 0; i < 8; ++i) mine[i] += terms[i];
    }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[down * 64 + across * 8 + static_cast<unsigned>(i)] = mine[i];
  __syncthreads();
  const std::int64_t out = std::int64_t{blockIdx.y} * 64 + threadIdx.x;
  if (threadIdx.x >= 64 || out >= cols) return;
  float total = 0;
  for (unsigned r = 0; r < 32; ++r) total += sums[r * 64 + threadIdx.x];
  partial[std::int64_t{blockIdx.x} * cols + out] = total;
}

// sums[c] += Σ over pieces of partial[piece][c]. A template, so that every file that asks may define it.
template <class = void>
__global__ void __launch_bounds__(kColumnThreads) add_column_pieces(const float* partial, std::int64_t pieces, std::int64_t cols, float* sums) {
  const std::int64_t c = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (c >= cols) return;
  float total = 0;
  for (std::int64_t piece = 0; piece < pieces; ++piece) total += partial[piece * cols + c];
  sums[c] += total;
}

// sums[cols] += column sums. cols is a multiple of 8; `workspace` has column_sums_workspace bytes.
template <class Term>
void add_column_sums(const Term& term, std::int64_t rows, std::int64_t cols, float* sums, float* workspace, cudaStream_t stream) {
  require(cols % 8 == 0, "column sums over ", cols, " columns; the device takes multiples of 8");
  if (rows == 0 || cols == 0) return;
  const std::int64_t pieces = column_pieces(rows);
  launch(stream, dim3(blocks(pieces), blocks(ceil_div(cols, 64))), kColumnThreads, 0, sum_column_pieces<Term>, term, rows, cols, workspace);
  launch(stream, blocks(ceil_div(cols, kColumnThreads)), kColumnThreads, 0, add_column_pieces<>, workspace, pieces, cols, sums);
}

}  // namespace engine::cuda
