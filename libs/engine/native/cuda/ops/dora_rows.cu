// dora_rows.cu: maps of 8 values a thread, 4 to 8 B a value, behind products that move several times as much. Chained: whose rows they are and what their
// adapters hold is read while the kernel before still runs, since no kernel writes it. Gated, a thread has a tile of 16: 8 of gate and the same 8 of up.
#include "core/error.h"
#include "cuda/ops/activation.cuh"
#include "cuda/ops/dora_rows.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 128;

// c of a row's part, or null.
ENGINE_DEVICE const float* factor_of(const RowFactors& factors, std::int64_t row, std::int64_t part) {
  const std::int32_t adapter = factors.adapter[row];
  return adapter < 0 ? nullptr : factors.factors[adapter * factors.parts + part];
}

ENGINE_DEVICE void load_factors8(const float* factor, std::int64_t n, float (&c)[8]) {
  load_floats4(factor + n, c);
  load_floats4(factor + n + 4, c + 4);
}

__global__ void __launch_bounds__(kThreads) scale(RowFactors factors, LoraColumns columns, const bf16* bias, View<const bf16> aside, View<bf16> y) {
  allow_next();
  const std::int64_t row = blockIdx.x, column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  const bool inside = column < y.cols;
  std::int64_t part = 0;
  while (inside && column >= columns.first_output[part + 1]) ++part;
  const float* factor = inside ? factor_of(factors, row, part) : nullptr;
  float c[8], added[8] = {};
  if (factor != nullptr) {
    load_factors8(factor, column - columns.first_output[part], c);
    if (bias != nullptr) widen8(load16(bias + column), added);
  }
  wait_for_previous();
  if (factor == nullptr) return;
  float values[8];
  widen8(load16(y.row(row) + column), values);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = fmaf(c[i], values[i] - added[i], added[i]);
  if (aside.data != nullptr) {
    float before[8];
    widen8(load16(aside.row(row) + column), before);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = before[i] + widen(narrow(values[i]));
  }
  store16(y.row(row) + column, pack8(values));
}

__global__ void __launch_bounds__(kThreads) set_aside(RowFactors factors, View<bf16> y, View<bf16> aside) {
  allow_next();
  const std::int64_t row = blockIdx.x, column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  const bool moves = column < y.cols && factor_of(factors, row, 0) != nullptr;
  wait_for_previous();
  if (!moves) return;
  store16(aside.row(row) + column, load16(y.row(row) + column));
  store16(y.row(row) + column, {0, 0, 0, 0});
}

__global__ void __launch_bounds__(kThreads)
    gated(GateUpTiles from, View<const bf16> low, RowAdapters adapters, RowFactors factors, bool all, View<bf16> y, bool gelu) {
  allow_next();
  const std::int64_t row = blockIdx.x, n = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  const float* factor[2] = {factor_of(factors, row, 0), factor_of(factors, row, 1)};
  const bool mine = n < y.cols && (all || factor[0] != nullptr || factor[1] != nullptr);
  const std::int32_t adapter = adapters.entries == nullptr ? -1 : adapters.adapter[row];
  wait_for_previous();
  if (!mine) return;
  float both[2][8];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    float(&values)[8] = both[part];
    widen8(load16(from.tiles.row(row) + 2 * n + 8 * part), values);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] *= from.unit[part];
    if (adapter >= 0) {
      const LoraEntry entry = adapters.entries[adapter * adapters.parts + part];
      float sums[8] = {};
      for (int rank = 0; rank < entry.rank; rank += 8) {
        float u[8];
        widen8(load16(low.row(row) + part * adapters.ranks + rank), u);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float v[8];
          widen8(load16(entry.b + (n + i) * entry.rank + rank), v);
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[i] = fmaf(u[j], v[j], sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += sums[i];
    }
    if (factor[part] != nullptr) {
      float c[8];
      load_factors8(factor[part], n, c);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] *= c[i];
    }
    if (from.bias != nullptr) {
      float added[8];
      widen8(load16(from.bias + part * y.cols + n), added);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += added[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) both[0][i] = activate(widen(narrow(both[0][i])), gelu) * widen(narrow(both[1][i]));
  store16(y.row(row) + n, pack8(both[0]));
}

dim3 grid_of(View<const bf16> y) { return {blocks(y.rows), blocks(ceil_div(y.cols, 8 * kThreads))}; }

}  // namespace

void dora_rows_scale(const RowFactors& factors, const LoraColumns& columns, const bf16* bias, View<const bf16> aside, View<bf16> y, cudaStream_t stream) {
  require(factors.parts >= 1 && factors.parts <= 3 && columns.first_output[0] == 0 && columns.first_output[factors.parts] == y.cols, factors.parts,
          " projections with outputs up to ", columns.first_output[factors.parts], " in a product of ", y.cols);
  for (std::int64_t part = 1; part <= factors.parts; ++part)
    require(columns.first_output[part] % 8 == 0, "a projection's outputs end at ", columns.first_output[part], "; the device takes multiples of 8");
  require(aside.data == nullptr || (aside.rows == y.rows && aside.cols == y.cols), "what was set aside is ", aside.rows, "x", aside.cols, ", the result ", y.rows, "x", y.cols);
  launch_chained(stream, grid_of(y), kThreads, 0, scale, factors, columns, bias, aside, y);
}

void dora_rows_set_aside(const RowFactors& factors, View<bf16> y, View<bf16> aside, cudaStream_t stream) {
  require(factors.parts == 1 && y.cols % 8 == 0 && aside.rows == y.rows && aside.cols == y.cols, "y is ", y.rows, "x", y.cols, " of ", factors.parts,
          " projections, set aside in ", aside.rows, "x", aside.cols);
  launch_chained(stream, grid_of(y), kThreads, 0, set_aside, factors, y, aside);
}

void dora_rows_gated(Activation act, const GateUpTiles& from, View<const bf16> low, const RowAdapters& adapters, const RowFactors& factors, GatedRows which, View<bf16> y,
                     cudaStream_t stream) {
  require(from.tiles.rows == y.rows && from.tiles.cols == 2 * y.cols && y.cols % 8 == 0, "gate and up are ", from.tiles.rows, "x", from.tiles.cols, ", y ", y.rows, "x", y.cols);
  require(factors.parts == 2 && (adapters.entries == nullptr || (adapters.parts == 2 && low.rows == y.rows && low.cols >= 2 * adapters.ranks)), "low is ", low.rows, "x",
          low.cols, " for gate and up of ", y.rows, " rows, with ranks of ", adapters.ranks);
  launch_chained(stream, grid_of(y), kThreads, 0, gated, from, low, adapters, factors, which == GatedRows::all, y, act == Activation::gelu_tanh);
}

}  // namespace engine::cuda
