// head_gemv.cu: one block a multiprocessor, whose warps take 32 outputs each (two A operands of mma.m16n8k16) and then the 32 that are a grid further on.
//   The head's rows and x pass through shared memory, 64 values of each at a time, three such stages on their way while one is multiplied: up to 144 KB of a
//   multiprocessor. With fewer outputs a block, 64 rows of x would take as much of the second-level cache's bandwidth as the head.
//   Floor: 2 B · V · K over memory bandwidth.
//   Which k a place of an operand means is free, as long as A and B agree: lane (g, t) has 8 neighbouring values, 8t … of each 32.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "cuda/ops/head_gemv.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace {

constexpr int kTile = 16, kTiles = 2, kOutputs = kTiles * kTile;  // of a warp
constexpr int kMostWarps = 12;
constexpr int kStep = 64, kChunks = kStep / 8, kStages = 4;  // values of K of a stage; of 16 bytes each

// kColumns · 8 rows of x.
template <int kColumns>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) multiply(View<const bf16> x, View<const bf16> head, float softcap, View<float> logits) {
  constexpr int kRows = 8 * kColumns;
  allow_next();
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), warps = threads / kWarp, warp = thread / kWarp, lane = thread % kWarp;
  const int g = lane / 4, t = lane % 4, outputs = warps * kOutputs, stage_values = (outputs + kRows) * kStep;
  auto* stages = static_cast<bf16*>(block_shared());  // of each: [outputs] rows of the head, [kRows] of x
  const std::int64_t depth = x.cols, first = std::int64_t{blockIdx.x} * outputs, further = std::int64_t{gridDim.x} * outputs;
  const auto groups = static_cast<int>((head.rows - first + further - 1) / further);  // of this block's outputs
  const auto each = static_cast<int>((depth + kStep - 1) / kStep);
  const auto place = [](int row, int chunk) { return row * kStep + 8 * (chunk ^ (row & 1) << 2); };  // neighbouring rows in different banks

  int ahead = 0;
  std::int64_t k_ahead = 0, output_ahead = first;
  const auto bring_head = [&] {
    bf16* to = stages + ahead * stage_values;
    for (int i = thread; i < outputs * kChunks; i += threads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool inside = output_ahead + row < head.rows && k_ahead + 8 * chunk < depth;
      copy_async16(to + place(row, chunk), inside ? head.row(output_ahead + row) + k_ahead + 8 * chunk : head.data, inside ? 16 : 0);
    }
  };
  const auto bring_x = [&] {
    bf16* to = stages + ahead * stage_values + outputs * kStep;
    for (int i = thread; i < kRows * kChunks; i += threads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool inside = row < x.rows && k_ahead + 8 * chunk < depth;
      copy_async16(to + place(row, chunk), inside ? x.row(row) + k_ahead + 8 * chunk : x.data, inside ? 16 : 0);
    }
  };
  const auto go_on = [&] {
    ahead = ahead + 1 < kStages ? ahead + 1 : 0;
    k_ahead += kStep;
    if (k_ahead < depth) return;
    k_ahead = 0;
    output_ahead += further;
  };
  // The head's first stages do not wait for x.
  for (int s = 0; s < kStages - 1; ++s) {
    bring_head();
    go_on();
  }
  ahead = 0;
  k_ahead = 0;
  output_ahead = first;
  wait_for_previous();
  for (int s = 0; s < kStages - 1; ++s) {
    bring_x();
    copy_async_commit();
    go_on();
  }
  int stage = 0;
  for (int group = 0; group < groups; ++group) {
    float sums[kTiles][kColumns][4] = {};
#pragma unroll 1
    for (int step = 0; step < each; ++step) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // this stage is there, and nobody reads the one before
      if (output_ahead < head.rows) {
        bring_head();
        bring_x();
      }
      copy_async_commit();
      go_on();
      const bf16* of_head = stages + stage * stage_values + warp * kOutputs * kStep;
      const bf16* of_x = stages + stage * stage_values + outputs * kStep;
#pragma unroll
      for (int j = 0; j < kStep / 32; ++j) {
        uint4 upper[kTiles], lower[kTiles], b[kColumns];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          upper[i] = load16(of_head + place(kTile * i + g, 4 * j + t));
          lower[i] = load16(of_head + place(kTile * i + g + 8, 4 * j + t));
        }
#pragma unroll
        for (int n = 0; n < kColumns; ++n) b[n] = load16(of_x + place(8 * n + g, 4 * j + t));
        // Products that follow each other add to different sums: one that waits for the sum before it takes ten times as long.
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int i = 0; i < kTiles; ++i) mma(sums[i][n], {upper[i].x, lower[i].x, upper[i].y, lower[i].y}, b[n].x, b[n].y);
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int i = 0; i < kTiles; ++i) mma(sums[i][n], {upper[i].z, lower[i].z, upper[i].w, lower[i].w}, b[n].z, b[n].w);
      }
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    const std::int64_t output = first + group * further + warp * kOutputs + g;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const std::int64_t row = 8 * n + 2 * t + s % 2, at = output + kTile * i + s / 2 * 8;
          const float sum = sums[i][n][s];
          if (row < logits.rows && at < logits.cols) logits.row(row)[at] = softcap > 0 ? softcap * tanhf(sum / softcap) : sum;
        }
  }
  copy_async_wait<0>();
}

std::int64_t shared_bytes(std::int64_t warps, std::int64_t rows) { return kStages * 2 * kStep * (warps * kOutputs + rows); }

// Warps of a block such that the busiest multiprocessor has the fewest outputs, and then the most warps; not less than half of what there is memory for.
std::int64_t warps_for(std::int64_t outputs, std::int64_t rows) {
  std::int64_t most = kMostWarps;
  while (most > 1 && shared_bytes(most, rows) > block_shared_bytes()) --most;
  std::int64_t best = most, least = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t warps = most; 2 * warps >= most; --warps) {
    const std::int64_t busiest = ceil_div(ceil_div(outputs, warps * kOutputs), multiprocessors()) * warps;
    if (busiest < least) best = warps, least = busiest;
  }
  return best;
}

}  // namespace

void head_gemv(View<const bf16> x, View<const bf16> head, float softcap, View<float> logits, cudaStream_t stream) {
  require(x.rows >= 1 && x.rows <= kHeadRows, x.rows, " rows; the head takes 1 to ", kHeadRows);
  require(x.cols == head.cols && x.cols % 8 == 0, "rows of ", x.cols, " values with a head of ", head.cols, "; the device takes multiples of 8");
  require(logits.rows == x.rows && logits.cols == head.rows, "the logits are ", logits.rows, "x", logits.cols, " for ", x.rows, " rows and a head of ", head.rows);
  if (head.rows == 0) return;
  const std::int64_t columns = x.rows <= 8 ? 1 : x.rows <= 16 ? 2 : x.rows <= 32 ? 4 : 8, warps = warps_for(head.rows, 8 * columns);
  const std::int64_t grid = std::min<std::int64_t>(multiprocessors(), ceil_div(head.rows, warps * kOutputs));
  launch_chained(stream, blocks(grid), static_cast<unsigned>(warps * kWarp), shared_bytes(warps, 8 * columns),
                 columns == 1 ? multiply<1> : columns == 2 ? multiply<2> : columns == 4 ? multiply<4> : multiply<8>, x, head, softcap, logits);
}

}  // namespace engine::cuda
