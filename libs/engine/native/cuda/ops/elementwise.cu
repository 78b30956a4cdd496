// elementwise.cu: maps, 8 values a thread; memory bandwidth is the limit (2 B for each value read or written).
#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/elementwise.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

#include <cmath>

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;

// body(row, first column, count ≤ 8) for every run of up to 8 columns: a block is a row's part, so columns need no division.
template <class Body>
__global__ void __launch_bounds__(kThreads) for_runs(std::int64_t cols, Body body) {
  const std::int64_t column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  if (column < cols) body(std::int64_t{blockIdx.x}, column, column + 8 <= cols ? 8 : static_cast<int>(cols - column));
}

template <class Body>
void run(std::int64_t rows, std::int64_t cols, const Body& body, cudaStream_t stream) {
  launch(stream, dim3(blocks(rows), blocks(ceil_div(cols, 8 * kThreads))), kThreads, 0, for_runs<Body>, cols, body);
}

ENGINE_DEVICE void load_run(const bf16* from, int count, float (&out)[8]) {
  if (count == 8) {
    widen8(load16(from), out);
  } else {
    for (int i = 0; i < 8; ++i) out[i] = i < count ? widen(from[i]) : 0.0f;
  }
}
ENGINE_DEVICE void store_run(bf16* to, int count, const float (&values)[8]) {
  if (count == 8) {
    store16(to, pack8(values));
  } else {
    for (int i = 0; i < count; ++i) to[i] = narrow(values[i]);
  }
}

struct AddScaled {
  View<const bf16> x;
  View<bf16> y;
  float alpha;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    float added[8], sums[8];
    load_run(x.row(row) + column, count, added);
    load_run(y.row(row) + column, count, sums);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = fmaf(alpha, added[i], sums[i]);
    store_run(y.row(row) + column, count, sums);
  }
};

// Words first … first + 7 of a stream; first need not be a multiple of 4.
struct PhiloxWords {
  Philox stream;
  std::uint64_t at = ~std::uint64_t{0};
  PhiloxBlock block{};
  ENGINE_DEVICE std::uint32_t word(std::uint64_t i) {
    if (i / 4 != at) {
      at = i / 4;
      block = stream.block(at);
    }
    const unsigned lane = static_cast<unsigned>(i % 4);
    return lane == 0 ? block[0] : lane == 1 ? block[1] : lane == 2 ? block[2] : block[3];
  }
};

struct Dropout {
  const std::uint64_t* seed;
  std::uint64_t number;
  std::uint32_t threshold;
  float factor;
  bool accumulate;
  View<const bf16> x;
  View<bf16> y;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    PhiloxWords words{Philox{*seed, number}};
    const auto first = static_cast<std::uint64_t>(row * x.cols + column);
    float values[8], sums[8] = {};
    load_run(x.row(row) + column, count, values);
    if (accumulate) load_run(y.row(row) + column, count, sums);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += words.word(first + static_cast<std::uint64_t>(i)) >= threshold ? values[i] * factor : 0.0f;
    store_run(y.row(row) + column, count, sums);
  }
};

struct Neftune {
  const std::uint64_t* seed;
  const float* magnitude;
  View<bf16> x;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    PhiloxWords words{Philox{*seed, 0}};
    const auto first = static_cast<std::uint64_t>(row * x.cols + column);
    float values[8];
    load_run(x.row(row) + column, count, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float uniform = static_cast<float>(words.word(first + static_cast<std::uint64_t>(i)) >> 8) * 0x1p-24f;
      values[i] += magnitude[row] * (2.0f * uniform - 1.0f);
    }
    store_run(x.row(row) + column, count, values);
  }
};

// to[row] = from[rows[row]], or the other way round.
struct MoveRows {
  View<const bf16> from;
  View<bf16> to;
  const std::int32_t* rows;
  bool scatter;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    const std::int64_t other = rows[row];
    if (other < 0 && scatter) return;
    float values[8] = {};
    if (other >= 0) load_run(from.row(scatter ? row : other) + column, count, values);
    store_run(to.row(scatter ? other : row) + column, count, values);
  }
};

// Rows may be far narrower than a block, so threads are dealt over all runs of 8.
__global__ void __launch_bounds__(kThreads) copy_runs(View<const bf16> from, View<bf16> to, std::int64_t runs) {
  const std::int64_t item = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, row = item / runs, column = item % runs * 8;
  if (row < to.rows) store16(to.row(row) + column, load16(from.row(row) + column));
}

struct ToBf16 {
  View<const float> x;
  View<bf16> y;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    float values[8] = {};
    for (int i = 0; i < count; ++i) values[i] = x.row(row)[column + i];
    store_run(y.row(row) + column, count, values);
  }
};

struct ToF32 {
  View<const bf16> x;
  View<float> y;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    float values[8];
    load_run(x.row(row) + column, count, values);
    for (int i = 0; i < count; ++i) y.row(row)[column + i] = values[i];
  }
};

struct Fill {
  View<bf16> x;
  float value;
  ENGINE_DEVICE void operator()(std::int64_t row, std::int64_t column, int count) const {
    const float values[8] = {value, value, value, value, value, value, value, value};
    store_run(x.row(row) + column, count, values);
  }
};

template <class A, class B>
void require_same(View<A> x, View<B> y) {
  require(x.rows == y.rows && x.cols == y.cols, "shapes ", x.rows, "x", x.cols, " and ", y.rows, "x", y.cols, " differ");
}

}  // namespace

void add_scaled(View<const bf16> x, float alpha, View<bf16> y, cudaStream_t stream) {
  require_same(x, y);
  run(y.rows, y.cols, AddScaled{x, y, alpha}, stream);
}

void dropout(const std::uint64_t* seed, std::uint64_t stream_number, float p, View<const bf16> x, View<bf16> y, bool accumulate, cudaStream_t stream) {
  require_same(x, y);
  require(p >= 0.0f && p < 1.0f, "dropout probability is ", p, "; use 0 to below 1");
  const auto threshold = static_cast<std::uint32_t>(std::llround(std::fmin(double{p} * 0x1p32, 4294967295.0)));
  run(y.rows, y.cols, Dropout{seed, stream_number, threshold, static_cast<float>(1.0 / (1.0 - double{p})), accumulate, x, y}, stream);
}

void add_neftune_noise(const std::uint64_t* seed, const float* magnitude, View<bf16> x, cudaStream_t stream) {
  run(x.rows, x.cols, Neftune{seed, magnitude, x}, stream);
}

void gather_rows(View<const bf16> from, const std::int32_t* rows, View<bf16> to, cudaStream_t stream) {
  require(from.cols == to.cols, "rows of ", from.cols, " values into rows of ", to.cols);
  run(to.rows, to.cols, MoveRows{from, to, rows, false}, stream);
}

void scatter_rows(View<const bf16> from, const std::int32_t* rows, View<bf16> to, cudaStream_t stream) {
  require(from.cols == to.cols, "rows of ", from.cols, " values into rows of ", to.cols);
  run(from.rows, from.cols, MoveRows{from, to, rows, true}, stream);
}

void copy_rows(View<const bf16> from, View<bf16> to, cudaStream_t stream) {
  require_same(from, to);
  require(to.cols % 8 == 0, "rows of ", to.cols, " values; copies take multiples of 8");
  launch(stream, blocks(ceil_div(to.rows * (to.cols / 8), kThreads)), kThreads, 0, copy_runs, from, to, to.cols / 8);
}

void narrow_rows(View<const float> x, View<bf16> y, cudaStream_t stream) {
  require_same(x, y);
  run(y.rows, y.cols, ToBf16{x, y}, stream);
}

void widen_rows(View<const bf16> x, View<float> y, cudaStream_t stream) {
  require_same(x, y);
  run(y.rows, y.cols, ToF32{x, y}, stream);
}

void fill(View<bf16> x, float value, cudaStream_t stream) { run(x.rows, x.cols, Fill{x, value}, stream); }

}  // namespace engine::cuda
