// lora_rows.cu: shrink: one block for a row and one rank (of few rows, where latency counts) or eight (so that x is read less often); its threads divide K,
// in the same order either way. Reads 2 B · K for each rank of each row: the adapters' bytes when every row has its own, otherwise mostly from the
// second-level cache. Chained: values of A, all of them up to a K of 20,480 (4,096 with eight ranks), are under way before x is there.
// Expand: a thread for an output of a row.
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr std::int64_t kFewRows = 8;

// kRanks of low's columns.
template <int kRanks>
__global__ void __launch_bounds__(kThreads) shrink(View<const bf16> x, RmsNorm norm, RowAdapters adapters, View<bf16> low) {
  constexpr unsigned kHeld = kRanks == 1 ? 10 : 2;  // times 8 values of each of a thread's ranks
  allow_next();
  SHARED_ARRAY(float, partial, kRanks * kWarps);
  const std::int64_t row = blockIdx.x, column = std::int64_t{blockIdx.y} * kRanks, part = column / adapters.ranks, first = column % adapters.ranks;
  const std::int32_t adapter = adapters.adapter[row];
  const LoraEntry entry = adapter < 0 ? LoraEntry{} : adapters.entries[adapter * adapters.parts + part];
  const bool none = adapter < 0 || first >= entry.rank;  // ranks are multiples of 8
  const auto units = static_cast<unsigned>(x.cols / 8);
  const bf16* a = none ? nullptr : entry.a + first * x.cols;
  uint4 held[kHeld][kRanks] = {};
#pragma unroll
  for (unsigned i = 0; i < kHeld; ++i)
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (!none && threadIdx.x + i * kThreads < units) held[i][r] = load16_once(a + r * x.cols + 8 * (threadIdx.x + i * kThreads));
  wait_for_previous();
  if (none) return;

  const bf16* from = x.row(row);
  float inverse = 0;
  if (norm.weight != nullptr) {
    float squares = 0;
    for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {
      float v[8];
      widen8(load16(from + 8 * unit), v);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    }
    inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(x.cols) + norm.eps);
  }
  float sums[kRanks] = {};
  const auto add = [&](unsigned unit, const uint4(&of_a)[kRanks]) {
    float v[8];
    widen8(load16(from + 8 * unit), v);
    if (norm.weight != nullptr) {
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) v[i] = widen(narrow(v[i] * (inverse * (norm.weight[8 * unit + i] + norm.offset))));
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      float u[8];
      widen8(of_a[r], u);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[r] = fmaf(u[i], v[i], sums[r]);
    }
  };
#pragma unroll
  for (unsigned i = 0; i < kHeld; ++i)
    if (threadIdx.x + i * kThreads < units) add(threadIdx.x + i * kThreads, held[i]);
#pragma unroll 2
  for (unsigned unit = threadIdx.x + kHeld * kThreads; unit < units; unit += kThreads) {
    uint4 of_a[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) of_a[r] = load16_once(a + r * x.cols + 8 * unit);
    add(unit, of_a);
  }
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane_id() == 0) partial[r * kWarps + static_cast<int>(threadIdx.x) / kWarp] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kRanks) return;
  float sum = 0;
  for (unsigned w = 0; w < kWarps; ++w) sum += partial[threadIdx.x * kWarps + w];
  low.row(row)[column + threadIdx.x] = narrow(entry.scale * sum);
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
  const std::int64_t columns = adapters.parts * adapters.ranks, each = x.rows <= kFewRows ? 1 : 8;
  launch_chained(stream, dim3(blocks(x.rows), blocks(columns / each)), kThreads, 0, each == 1 ? shrink<1> : shrink<8>, x, norm, adapters, low);
}

void lora_rows_expand(View<const bf16> low, const RowAdapters& adapters, const LoraColumns& columns, View<bf16> y, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == y.rows, "low has ", low.rows, " rows, y ", y.rows);
  launch_chained(stream, dim3(blocks(y.rows), blocks(ceil_div(y.cols, kThreads))), kThreads, 0, expand, low, adapters, columns, y);
}

}  // namespace engine::cuda
