// lora_rows.cu: shrink: one block for a row and eight ranks, a warp each; the row, normalized if asked for, waits in shared memory. Reads 2 B · K for each rank
// of each row: the adapters' bytes when every row has its own, otherwise mostly from the second-level cache. Expand: a thread for an output of a row.
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;

__global__ void __launch_bounds__(kThreads) shrink(View<const bf16> x, RmsNorm norm, RowAdapters adapters, View<bf16> low) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.x;
  const std::int32_t adapter = adapters.adapter[row];
  if (adapter < 0) return;
  const std::int64_t column = std::int64_t{blockIdx.y} * kWarps, part = column / adapters.ranks, first = column % adapters.ranks;
  const LoraEntry entry = adapters.entries[adapter * adapters.parts + part];
  if (first >= entry.rank) return;

  auto* values = static_cast<bf16*>(block_shared());
  const auto units = static_cast<unsigned>(x.cols / 8);
  float squares = 0;
  for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {
    const uint4 raw = load16(x.row(row) + 8 * unit);
    store16(values + 8 * unit, raw);
    float v[8];
    widen8(raw, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
  }
  if (norm.weight != nullptr) {
    const float inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(x.cols) + norm.eps);
    for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {  // its own
      float v[8];
      widen8(load16(values + 8 * unit), v);
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) v[i] *= inverse * (norm.weight[8 * unit + i] + norm.offset);
      store16(values + 8 * unit, pack8(v));
    }
  }
  __syncthreads();
  const unsigned warp = threadIdx.x / kWarp;  // ranks come in eights, as many as there are warps
  const bf16* a = entry.a + (first + warp) * x.cols;
  float sum = 0;
#pragma unroll 4
  for (unsigned unit = lane_id(); unit < units; unit += kWarp) {
    float u[8], v[8];
    widen8(load16_once(a + 8 * unit), u);
    widen8(load16(values + 8 * unit), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(u[i], v[i], sum);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) low.row(row)[column + warp] = narrow(entry.scale * sum);
}

__global__ void __launch_bounds__(kThreads) expand(View<const bf16> low, RowAdapters adapters, LoraColumns columns, View<bf16> y) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.x, output = std::int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const std::int32_t adapter = adapters.adapter[row];
  if (adapter < 0 || output >= y.cols) return;
  int part = 0;
  while (part + 1 < adapters.parts && output >= columns.first_output[part + 1]) ++part;
  const LoraEntry entry = adapters.entries[adapter * adapters.parts + part];
  const bf16* from = low.row(row) + part * adapters.ranks;
  const bf16* b = entry.b + (output - columns.first_output[part]) * entry.rank;
  float sum = widen(y.row(row)[output]);
  for (int j = 0; j < entry.rank; j += 8) {
    float u[8], v[8];
    widen8(load16(from + j), u);
    widen8(load16(b + j), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(u[i], v[i], sum);
  }
  y.row(row)[output] = narrow(sum);
}

void check(const RowAdapters& adapters, View<const bf16> low) {
  require(adapters.entries != nullptr && adapters.parts >= 1 && adapters.parts <= 3, "adapters of ", adapters.parts, " parts; use 1 to 3");
  require(adapters.ranks >= 8 && adapters.ranks <= 256 && adapters.ranks % 8 == 0, "adapters of rank ", adapters.ranks, "; use a multiple of 8 up to 256");
  require(low.cols >= adapters.parts * adapters.ranks, "low has ", low.cols, " columns for ", adapters.parts, " parts of rank ", adapters.ranks);
}

}  // namespace

void lora_rows_shrink(View<const bf16> x, const RmsNorm& norm, const RowAdapters& adapters, View<bf16> low, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == x.rows && x.cols % 8 == 0, "x is ", x.rows, "x", x.cols, ", low has ", low.rows, " rows");
  launch_chained(stream, dim3(blocks(x.rows), blocks(adapters.parts * adapters.ranks / kWarps)), kThreads, 2 * x.cols, shrink, x, norm, adapters, low);
}

void lora_rows_expand(View<const bf16> low, const RowAdapters& adapters, const LoraColumns& columns, View<bf16> y, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == y.rows, "low has ", low.rows, " rows, y ", y.rows);
  launch_chained(stream, dim3(blocks(y.rows), blocks(ceil_div(y.cols, kThreads))), kThreads, 0, expand, low, adapters, columns, y);
}

}  // namespace engine::cuda
