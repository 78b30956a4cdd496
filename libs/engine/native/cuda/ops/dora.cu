// dora.cu: norms of the rows of V, 8 rows a block: 2·r operations for each value of W, where A comes from the second-level cache once for 8 rows; once for
// every change of the adapter. The scaling of outputs moves 4 B a value (accumulating 6), the gradient of magnitudes 4.
#include "core/code_tables.h"
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/column_sums.h"
#include "cuda/ops/dora.h"
#include "cuda/ops/nf4_decode.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr unsigned kNormThreads = 128, kScaleThreads = 128;
constexpr int kNormRows = 8, kRankChunk = 32, kScaleRows = 8;

struct Nf4Rows {
  DeviceNf4 weight;
  NfBook book;
  std::int64_t rows, cols;
  ENGINE_DEVICE void load(const float* values, std::int64_t row, std::int64_t column, float (&to)[8]) const {
    const std::int64_t first = row * cols + column;
    const std::uint32_t codes = reinterpret_cast<const std::uint32_t*>(weight.codes)[first / 8];
    const float scale = nf4_scale(weight, first / kNf4Block);
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = values[codes >> nf4_shift(i) & 15] * scale;
  }
};

struct Bf16Rows {
  View<const bf16> weight;
  NfBook book;  // not used
  std::int64_t rows, cols;
  ENGINE_DEVICE void load(const float*, std::int64_t row, std::int64_t column, float (&to)[8]) const { widen8(load16(weight.row(row) + column), to); }
};

// A thread has 8 columns of the block's rows at a time.
template <class Weight>
__global__ void __launch_bounds__(kNormThreads) inverse_norms(Weight w, DoraMatrices adapter, float* inverse) {
  SHARED_ARRAY(float, values, 16);
  SHARED_ARRAY(float, b, kNormRows * kRankChunk);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kNormRows;
  if (threadIdx.x < 16) values[threadIdx.x] = w.book.value[threadIdx.x];
  double squares[kNormRows] = {};
  __syncthreads();
  for (std::int64_t base = 0; base < w.cols; base += 8 * kNormThreads) {
    const std::int64_t column = base + 8 * threadIdx.x;
    const bool inside = column < w.cols;
    float v[kNormRows][8] = {};
    if (inside)
#pragma unroll
      for (int row = 0; row < kNormRows; ++row)
        if (first_row + row < w.rows) w.load(values, first_row + row, column, v[row]);
    for (std::int64_t first = 0; first < adapter.rank; first += kRankChunk) {
      const auto count = static_cast<int>(adapter.rank - first < kRankChunk ? adapter.rank - first : kRankChunk);
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kNormRows * kRankChunk; i += kNormThreads) {
        const std::int64_t row = first_row + i / kRankChunk;
        b[i] = row < w.rows && i % kRankChunk < count ? adapter.scale * adapter.b[row * adapter.rank + first + i % kRankChunk] : 0.0f;
      }
      __syncthreads();
      if (!inside) continue;
      for (int j = 0; j < count; ++j) {
        float a[8];
        load_floats4(adapter.a + (first + j) * w.cols + column, a);
        load_floats4(adapter.a + (first + j) * w.cols + column + 4, a + 4);
#pragma unroll
        for (int row = 0; row < kNormRows; ++row)
#pragma unroll
          for (int i = 0; i < 8; ++i) v[row][i] = fmaf(b[row * kRankChunk + j], a[i], v[row][i]);
      }
    }
#pragma unroll
    for (int row = 0; row < kNormRows; ++row) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(v[row][i], v[row][i], sum);
      squares[row] += sum;
    }
  }
#pragma unroll
  for (int row = 0; row < kNormRows; ++row) {
    const double sum = block_sum(squares[row]);
    if (threadIdx.x == 0 && first_row + row < w.rows) inverse[first_row + row] = sum > 0 ? static_cast<float>(1.0 / sqrt(sum)) : 0.0f;
  }
}

template <class Weight>
void launch_norms(const Weight& w, const DoraMatrices& adapter, float* inverse, cudaStream_t stream) {
  require(w.cols % 8 == 0 && adapter.rank > 0, "norms of rows of ", w.cols, " with rank ", adapter.rank, "; the device takes multiples of 8");
  launch(stream, blocks(ceil_div(w.rows, kNormRows)), kNormThreads, 0, inverse_norms<Weight>, w, adapter, inverse);
}

__global__ void __launch_bounds__(kScaleThreads) norms(const float* inverse, std::int64_t n, float* magnitude) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kScaleThreads + threadIdx.x;
  if (i < n) magnitude[i] = inverse[i] > 0 ? 1.0f / inverse[i] : 0.0f;
}

struct Parts {
  DoraPart part[kMostDoraParts];
  int count;
};

// A thread has 8 columns of 8 rows: their factors are read once.
__global__ void __launch_bounds__(kScaleThreads) scale_outputs(View<const bf16> x, Parts parts, const bf16* bias, View<bf16> y, bool accumulate) {
  const std::int64_t column = (std::int64_t{blockIdx.y} * kScaleThreads + threadIdx.x) * 8, first = std::int64_t{blockIdx.x} * kScaleRows;
  if (column >= x.cols) return;
  float c[8] = {1, 1, 1, 1, 1, 1, 1, 1}, added[8] = {};
  for (int p = 0; p < parts.count; ++p) {
    const DoraPart& part = parts.part[p];
    const std::int64_t n = column - part.first_output;
    if (n < 0 || n >= part.outputs) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = part.magnitude[n + i] * part.inverse[n + i];
  }
  if (bias != nullptr) widen8(load16(bias + column), added);
  for (std::int64_t row = first; row < first + kScaleRows && row < x.rows; ++row) {
    float values[8], before[8] = {};
    widen8(load16(x.row(row) + column), values);
    if (accumulate) widen8(load16(y.row(row) + column), before);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = before[i] + fmaf(c[i], values[i], added[i]);
    store16(y.row(row) + column, pack8(values));
  }
}

struct MagnitudeTerm {
  View<const bf16> dy, u;
  const float* inverse;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, float (&terms)[8]) const {
    float gradient[8];
    widen8(load16(u.row(row) + column), terms);
    widen8(load16(dy.row(row) + column), gradient);
#pragma unroll
    for (int i = 0; i < 8; ++i) terms[i] *= gradient[i] * inverse[column + i];
  }
};

}  // namespace

void dora_inverse_norms(const Matrix& nf4, const DoraMatrices& adapter, float* inverse, cudaStream_t stream) {
  launch_norms(Nf4Rows{device_nf4(nf4), nf4_book(), nf4.rows, nf4.cols}, adapter, inverse, stream);
}

void dora_inverse_norms(View<const bf16> w, const DoraMatrices& adapter, float* inverse, cudaStream_t stream) {
  launch_norms(Bf16Rows{w, {}, w.rows, w.cols}, adapter, inverse, stream);
}

void dora_magnitudes(const float* inverse, std::int64_t n, float* magnitude, cudaStream_t stream) {
  launch(stream, blocks(ceil_div(n, kScaleThreads)), kScaleThreads, 0, norms, inverse, n, magnitude);
}

void dora_scale(View<const bf16> x, std::span<const DoraPart> parts, const bf16* bias, View<bf16> y, bool accumulate, cudaStream_t stream) {
  require(x.rows == y.rows && x.cols == y.cols && x.cols % 8 == 0, "x is ", x.rows, "x", x.cols, ", y ", y.rows, "x", y.cols, "; the device takes multiples of 8");
  require(static_cast<std::int64_t>(parts.size()) <= kMostDoraParts, parts.size(), " projections in one product; it takes at most ", kMostDoraParts);
  Parts all{};
  all.count = static_cast<int>(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const DoraPart& part = parts[i];
    require(part.first_output % 8 == 0 && part.outputs % 8 == 0 && part.first_output + part.outputs <= x.cols, "outputs ", part.first_output, "+", part.outputs, " of ",
            x.cols);
    all.part[i] = part;
  }
  launch(stream, dim3(blocks(ceil_div(x.rows, kScaleRows)), blocks(ceil_div(x.cols, 8 * kScaleThreads))), kScaleThreads, 0, scale_outputs, x, all, bias, y, accumulate);
}

void dora_magnitude_backward(View<const bf16> dy, View<const bf16> u, const float* inverse, float* dmagnitude, float* workspace, cudaStream_t stream) {
  require(dy.rows == u.rows && dy.cols == u.cols, "dy is ", dy.rows, "x", dy.cols, ", u ", u.rows, "x", u.cols);
  add_column_sums(MagnitudeTerm{dy, u, inverse}, dy.rows, dy.cols, dmagnitude, workspace, stream);
}

std::int64_t dora_workspace(std::int64_t tokens, std::int64_t outputs) { return column_sums_workspace(tokens, outputs); }

}  // namespace engine::cuda
