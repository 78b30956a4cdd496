// head_gemv.cu: 128 outputs a block, 16 a warp: the A operand of mma.m16n8k16, read from memory straight into its registers, 8 KB of a warp under way. x passes
//   through shared memory 128 values at a time. Floor: 2 B · V · K over memory bandwidth.
//   Which k a place of an operand means is free, as long as A and B agree: lane (g, t) has 8 neighbouring values, 8t … of each 32.
#include <cmath>

#include "core/error.h"
#include "cuda/ops/head_gemv.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kTile = 16, kOutputs = kWarps * kTile;
constexpr int kStep = 128, kLoads = kStep / 32;  // values of K; loads of a lane and row

// kColumns · 8 rows of x.
template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2) multiply(View<const bf16> x, View<const bf16> head, float softcap, View<float> logits) {
  constexpr int kRows = 8 * kColumns;
  allow_next();
  SHARED_ARRAY(bf16, tiles, 2 * kRows * kStep);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const std::int64_t output = std::int64_t{blockIdx.x} * kOutputs + thread / kWarp * kTile + g, depth = x.cols;
  const bf16* upper = head.row(output < head.rows ? output : 0) + 8 * t;  // one that is not there: the first
  const bf16* lower = head.row(output + 8 < head.rows ? output + 8 : 0) + 8 * t;
  uint4 weights[2][kLoads];
  const auto load_weights = [&](std::int64_t k) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const bool inside = k + 32 * j + 8 * t < depth;
      weights[0][j] = inside ? load16_once(upper + k + 32 * j) : uint4{};
      weights[1][j] = inside ? load16_once(lower + k + 32 * j) : uint4{};
    }
  };
  const auto bring_x = [&](std::int64_t k, int buffer) {
    for (int i = thread; i < kRows * (kStep / 8); i += kThreads) {
      const int row = i / (kStep / 8), chunk = i % (kStep / 8);
      const std::int64_t column = k + 8 * chunk;
      const bool inside = row < x.rows && column < depth;
      copy_async16(tiles + (buffer * kRows + row) * kStep + 8 * (chunk ^ (row & 1) << 2), inside ? x.row(row) + column : x.data, inside ? 16 : 0);
    }
    copy_async_commit();
  };
  load_weights(0);
  wait_for_previous();
  bring_x(0, 0);
  float sums[kColumns][4] = {};
  int buffer = 0;
  for (std::int64_t k = 0; k < depth; k += kStep, buffer ^= 1) {
    std::uint32_t a[2 * kLoads][4];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const uint4 u = weights[0][j], l = weights[1][j];
      a[2 * j][0] = u.x;
      a[2 * j][1] = l.x;
      a[2 * j][2] = u.y;
      a[2 * j][3] = l.y;
      a[2 * j + 1][0] = u.z;
      a[2 * j + 1][1] = l.z;
      a[2 * j + 1][2] = u.w;
      a[2 * j + 1][3] = l.w;
    }
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the other
    if (k + kStep < depth) {
      load_weights(k + kStep);
      bring_x(k + kStep, 1 - buffer);
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const uint4 b = load16(tiles + (buffer * kRows + 8 * n + g) * kStep + 8 * ((4 * j + t) ^ (g & 1) << 2));
        mma(sums[n], a[2 * j], b.x, b.y);
        mma(sums[n], a[2 * j + 1], b.z, b.w);
      }
  }
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t row = 8 * n + 2 * t + i % 2, at = output + i / 2 * 8;
      if (row < logits.rows && at < logits.cols) logits.row(row)[at] = softcap > 0 ? softcap * tanhf(sums[n][i] / softcap) : sums[n][i];
    }
}

}  // namespace

void head_gemv(View<const bf16> x, View<const bf16> head, float softcap, View<float> logits, cudaStream_t stream) {
  require(x.rows >= 1 && x.rows <= kHeadRows, x.rows, " rows; the head takes 1 to ", kHeadRows);
  require(x.cols == head.cols && x.cols % 8 == 0, "rows of ", x.cols, " values with a head of ", head.cols, "; the device takes multiples of 8");
  require(logits.rows == x.rows && logits.cols == head.rows, "the logits are ", logits.rows, "x", logits.cols, " for ", x.rows, " rows and a head of ", head.rows);
  if (head.rows == 0) return;
  launch_chained(stream, blocks(ceil_div(head.rows, kOutputs)), kThreads, 0,
                 x.rows <= 8 ? multiply<1> : x.rows <= 16 ? multiply<2> : x.rows <= 32 ? multiply<4> : multiply<8>, x, head, softcap, logits);
}

}  // namespace engine::cuda
