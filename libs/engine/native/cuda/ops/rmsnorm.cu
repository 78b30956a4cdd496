// rmsnorm.cu: one block a row, held in registers between the two passes. Bytes a value: forward 4, with delta 8; backward 6, accumulating 8. Memory
// bandwidth is the limit.
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/column_sums.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::int64_t kMostColumns = 16384;

// `kUnits` times 8 values a thread; unit u of thread i is number u · kThreads + i of the row.
template <int kUnits>
__global__ void __launch_bounds__(kThreads) forward(RmsNorm norm, View<bf16> x, View<const bf16> delta, View<bf16> y, float* rstd) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.x;
  const auto units = static_cast<unsigned>(x.cols / 8);
  float held[kUnits][8] = {}, weights[kUnits][8] = {};
  float squares = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {  // on their way together with x
    const unsigned unit = static_cast<unsigned>(u) * kThreads + threadIdx.x;
    if (unit >= units || y.data == nullptr) continue;
    load_floats4(norm.weight + 8 * unit, weights[u]);
    load_floats4(norm.weight + 8 * unit + 4, weights[u] + 4);
  }
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const unsigned unit = static_cast<unsigned>(u) * kThreads + threadIdx.x;
    if (unit >= units) continue;
    widen8(load16(x.row(row) + 8 * unit), held[u]);
    if (delta.data != nullptr) {
      float added[8];
      widen8(load16(delta.row(row) + 8 * unit), added);
#pragma unroll
      for (int i = 0; i < 8; ++i) held[u][i] += added[i];
      const uint4 sum = pack8(held[u]);
      store16(x.row(row) + 8 * unit, sum);
      widen8(sum, held[u]);  // the norm is of what is stored
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(held[u][i], held[u][i], squares);
  }
  const float inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(x.cols) + norm.eps);
  if (rstd != nullptr && threadIdx.x == 0) rstd[row] = inverse;
  if (y.data == nullptr) return;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const unsigned unit = static_cast<unsigned>(u) * kThreads + threadIdx.x;
    if (unit >= units) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) held[u][i] *= inverse * (weights[u][i] + norm.offset);
    store16(y.row(row) + 8 * unit, pack8(held[u]));
  }
}

template <int kUnits>
__global__ void __launch_bounds__(kThreads)
    backward(RmsNorm norm, View<const bf16> x, const float* rstd, View<const bf16> dy, View<bf16> dx, bool accumulate) {
  const std::int64_t row = blockIdx.x;
  const auto units = static_cast<unsigned>(x.cols / 8);
  float values[kUnits][8] = {}, weighted[kUnits][8] = {};
  float product = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const unsigned unit = static_cast<unsigned>(u) * kThreads + threadIdx.x;
    if (unit >= units) continue;
    widen8(load16(x.row(row) + 8 * unit), values[u]);
    widen8(load16(dy.row(row) + 8 * unit), weighted[u]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      weighted[u][i] *= norm.weight[8 * unit + static_cast<unsigned>(i)] + norm.offset;
      product = fmaf(weighted[u][i], values[u][i], product);
    }
  }
  const float inverse = rstd[row];
  const float along = inverse * inverse * (block_sum(product) / static_cast<float>(x.cols));
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const unsigned unit = static_cast<unsigned>(u) * kThreads + threadIdx.x;
    if (unit >= units) continue;
    float result[8] = {};
    if (accumulate) widen8(load16(dx.row(row) + 8 * unit), result);
#pragma unroll
    for (int i = 0; i < 8; ++i) result[i] += inverse * (weighted[u][i] - values[u][i] * along);
    store16(dx.row(row) + 8 * unit, pack8(result));
  }
}

void check_width(std::int64_t cols) {
  require(cols % 8 == 0 && cols <= kMostColumns, "a norm over ", cols, " columns; the device takes multiples of 8 up to ", kMostColumns);
}

// The kernel for the least number of units that covers a row.
template <class Kernel>
Kernel* kernel_for(std::int64_t cols, Kernel* one, Kernel* two, Kernel* four, Kernel* eight) {
  const std::int64_t units = ceil_div(cols / 8, kThreads);
  return units <= 1 ? one : units <= 2 ? two : units <= 4 ? four : eight;
}

struct WeightTerm {
  View<const bf16> x, dy;
  const float* rstd;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, float (&terms)[8]) const {
    float gradient[8];
    widen8(load16(x.row(row) + column), terms);
    widen8(load16(dy.row(row) + column), gradient);
    const float inverse = rstd[row];
#pragma unroll
    for (int i = 0; i < 8; ++i) terms[i] *= gradient[i] * inverse;
  }
};

}  // namespace

void rmsnorm_forward(const RmsNorm& norm, View<bf16> x, View<const bf16> delta, View<bf16> y, float* rstd, cudaStream_t stream) {
  check_width(x.cols);
  require(delta.data == nullptr || (delta.rows == x.rows && delta.cols == x.cols), "delta is ", delta.rows, "x", delta.cols, ", x ", x.rows, "x", x.cols);
  require(y.data == nullptr || (y.rows == x.rows && y.cols == x.cols), "y is ", y.rows, "x", y.cols, ", x ", x.rows, "x", x.cols);
  if (x.cols == 0) return;
  launch_chained(stream, blocks(x.rows), kThreads, 0, kernel_for(x.cols, forward<1>, forward<2>, forward<4>, forward<8>), norm, x, delta, y, rstd);
}

void rmsnorm_backward(const RmsNorm& norm, View<const bf16> x, const float* rstd, View<const bf16> dy, View<bf16> dx, bool accumulate, cudaStream_t stream) {
  check_width(x.cols);
  require(dy.rows == x.rows && dy.cols == x.cols && dx.rows == x.rows && dx.cols == x.cols, "x is ", x.rows, "x", x.cols, ", dy ", dy.rows, "x", dy.cols,
          ", dx ", dx.rows, "x", dx.cols);
  if (x.cols == 0) return;
  launch(stream, blocks(x.rows), kThreads, 0, kernel_for(x.cols, backward<1>, backward<2>, backward<4>, backward<8>), norm, x, rstd, dy, dx, accumulate);
}

void rmsnorm_backward_weight(View<const bf16> x, const float* rstd, View<const bf16> dy, float* dweight, void* workspace, cudaStream_t stream) {
  require(dy.rows == x.rows && dy.cols == x.cols, "x is ", x.rows, "x", x.cols, ", dy ", dy.rows, "x", dy.cols);
  add_column_sums(WeightTerm{x, dy, rstd}, x.rows, x.cols, dweight, static_cast<float*>(workspace), stream);
}

std::int64_t rmsnorm_weight_workspace(std::int64_t rows, std::int64_t cols) { return column_sums_workspace(rows, cols); }

}  // namespace engine::cuda
