// reduce.cu: two steps each: pieces whose bounds depend on the size alone, then the pieces in order. Bytes: 4 a value (sum of squares), 2 (bias, argmax).
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/column_sums.h"
#include "cuda/ops/reduce.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::int64_t kPieces = 1024;

__global__ void __launch_bounds__(kThreads) sum_square_pieces(const float* x, std::int64_t n, double* pieces) {
  const std::int64_t quads = ceil_div(n, 4), piece = blockIdx.x;
  const std::int64_t first = quads * piece / kPieces, last = quads * (piece + 1) / kPieces;
  double sum = 0;
  for (std::int64_t quad = first + threadIdx.x; quad < last; quad += kThreads) {
    float values[4] = {};
    if (4 * quad + 4 <= n) {
      load_floats4(x + 4 * quad, values);
    } else {
      for (int i = 0; i < 4; ++i) values[i] = 4 * quad + i < n ? x[4 * quad + i] : 0.0f;
    }
#pragma unroll
    for (const float value : values) sum += double{value} * value;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) pieces[piece] = sum;
}

__global__ void __launch_bounds__(kThreads) sum_pieces(const double* pieces, double* out) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < kPieces; i += kThreads) sum += pieces[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

__global__ void __launch_bounds__(kWarp) clip(const double* sum, float max_norm, float* scale, float* norm) {
  if (threadIdx.x != 0) return;
  const double length = sqrt(*sum);
  const bool finite = length < static_cast<double>(infinity());  // false for NaN too
  const double wanted = max_norm > 0 ? static_cast<double>(max_norm) / (length + 1e-6) : 1.0;
  *scale = finite ? static_cast<float>(wanted < 1.0 ? wanted : 1.0) : quiet_nan();
  if (norm != nullptr) *norm = static_cast<float>(length);
}

struct Plain {
  View<const bf16> x;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, float (&terms)[8]) const { widen8(load16(x.row(row) + column), terms); }
};

struct Best {
  float value;
  std::int32_t column;  // -1: none yet
};

ENGINE_DEVICE Best better(Best a, Best b) {
  if (b.column < 0 || (a.column >= 0 && (a.value > b.value || (a.value == b.value && a.column < b.column)))) return a;
  return b;
}

__global__ void __launch_bounds__(kThreads) argmax(View<const bf16> x, std::int32_t* out) {
  SHARED_ARRAY(Best, warps, kThreads / kWarp);
  const std::int64_t row = blockIdx.x;
  Best best{0, -1};
  for (std::int64_t c = threadIdx.x; c < x.cols; c += kThreads) {
    const float value = widen(x.row(row)[c]);
    if (value == value) best = better(best, {value, static_cast<std::int32_t>(c)});
  }
  for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) {
    const float value = shuffle_xor(best.value, mask);
    best = better(best, {value, shuffle_xor(best.column, mask)});
  }
  if (lane_id() == 0) warps[threadIdx.x / kWarp] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned w = 1; w < kThreads / kWarp; ++w) best = better(best, warps[w]);
  out[row] = best.column < 0 ? 0 : best.column;
}

}  // namespace

void sum_of_squares(const float* x, std::int64_t n, double* out, void* workspace, cudaStream_t stream) {
  auto* pieces = static_cast<double*>(workspace);
  launch(stream, blocks(kPieces), kThreads, 0, sum_square_pieces, x, n, pieces);
  launch(stream, 1, kThreads, 0, sum_pieces, pieces, out);
}

std::int64_t sum_of_squares_workspace() { return kPieces * static_cast<std::int64_t>(sizeof(double)); }

void clip_scale(const double* sum, float max_norm, float* scale, float* norm, cudaStream_t stream) {
  launch(stream, 1, kWarp, 0, clip, sum, max_norm, scale, norm);
}

void bias_gradient(View<const bf16> dy, float* db, void* workspace, cudaStream_t stream) {
  add_column_sums(Plain{dy}, dy.rows, dy.cols, db, static_cast<float*>(workspace), stream);
}

std::int64_t bias_gradient_workspace(std::int64_t rows, std::int64_t cols) { return column_sums_workspace(rows, cols); }

void argmax_rows(View<const bf16> x, std::int32_t* out, cudaStream_t stream) { launch(stream, blocks(x.rows), kThreads, 0, argmax, x, out); }

}  // namespace engine::cuda
