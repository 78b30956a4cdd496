// gemm_mma.cu: tiles of 128 × 128 by 8 warps of 64 × 32, four stages of 32 along K copied ahead.
//   Floor: 2 · M · N · K over the tensor cores' rate. mma.sync reaches about 60 % of it on Hopper, whose full rate needs wgmma: this is what runs where
//   cuBLASLt is not to be had.
#include "core/error.h"
#include "cuda/ops/gemm.h"
#include "cuda/ops/tile.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr int kTile = 128, kDepth = 32, kStages = 4, kThreads = 256;
constexpr int kWarpRows = 64, kWarpColumns = 32;

// An operand's tile: rows along its own side (k in rows' columns), or rows along k when it is stored the other way round.
template <bool kDepthInRows>
using Operand = std::conditional_t<kDepthInRows, Tile<kDepth, kTile>, Tile<kTile, kDepth>>;

template <class Out>
struct Epilogue {
  View<Out> c;
  float alpha, beta;
  const bf16* bias;

  ENGINE_DEVICE float value(std::int64_t row, std::int64_t column, float sum) const {
    float result = alpha * sum;
    if (bias != nullptr) result += widen(bias[column]);
    if (beta != 0.0f) {
      if constexpr (std::is_same_v<Out, float>)
        result += beta * c.row(row)[column];
      else
        result += beta * widen(c.row(row)[column]);
    }
    return result;
  }
  // Columns `column` (even) and the one after.
  ENGINE_DEVICE void store(std::int64_t row, std::int64_t column, float first, float second) const {
    if (row >= c.rows || column >= c.cols) return;
    const bool both = column + 1 < c.cols;
    first = value(row, column, first);
    if (both) second = value(row, column + 1, second);
    Out* to = c.row(row) + column;
    if constexpr (std::is_same_v<Out, float>) {
      to[0] = first;
      if (both) to[1] = second;
    } else if (both) {
      const std::uint32_t pair = pack(first, second);
      to[0] = {static_cast<std::uint16_t>(pair)};
      to[1] = {static_cast<std::uint16_t>(pair >> 16)};
    } else {
      to[0] = narrow(first);
    }
  }
};

template <bool kATransposed, bool kBTransposed, class Out>
__global__ void __launch_bounds__(kThreads) multiply(View<const bf16> a, View<const bf16> b, Epilogue<Out> out, std::int64_t depth) {
  using TileA = Operand<kATransposed>;
  using TileB = Operand<kBTransposed>;
  auto* shared = static_cast<bf16*>(block_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kTile, first_column = std::int64_t{blockIdx.y} * kTile;
  const int warp_row = warp % 2 * kWarpRows, warp_column = warp / 2 * kWarpColumns;
  const auto tile_a = [&](int stage) { return TileA{shared + stage * (TileA::kValues + TileB::kValues)}; };
  const auto tile_b = [&](int stage) { return TileB{shared + stage * (TileA::kValues + TileB::kValues) + TileA::kValues}; };
  const auto fetch = [&](std::int64_t step) {
    const std::int64_t k = step * kDepth;
    const int stage = static_cast<int>(step % kStages);
    if (k < depth) {
      if constexpr (kATransposed)
        tile_a(stage).template load<kThreads>(a, k, first_row, thread);
      else
        tile_a(stage).template load<kThreads>(a, first_row, k, thread);
      if constexpr (kBTransposed)
        tile_b(stage).template load<kThreads>(b, k, first_column, thread);
      else
        tile_b(stage).template load<kThreads>(b, first_column, k, thread);
    }
    copy_async_commit();  // an empty group keeps the count when there is nothing left to fetch
  };

  float sums[kWarpRows / 16][kWarpColumns / 8][4] = {};
  const std::int64_t steps = ceil_div(depth, kDepth);
  for (int s = 0; s < kStages - 1; ++s) fetch(s);
  for (std::int64_t step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this stage is there, and nobody reads the one that is fetched next
    fetch(step + kStages - 1);
    const TileA from_a = tile_a(static_cast<int>(step % kStages));
    const TileB from_b = tile_b(static_cast<int>(step % kStages));
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t fragment_a[kWarpRows / 16][4], fragment_b[kWarpColumns / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpRows / 16; ++i) {
        if constexpr (kATransposed)
          load_a_transposed(fragment_a[i], from_a, warp_row + 16 * i, k);
        else
          load_a(fragment_a[i], from_a, warp_row + 16 * i, k);
      }
#pragma unroll
      for (int j = 0; j < kWarpColumns / 16; ++j) {
        if constexpr (kBTransposed)
          load_b_transposed(fragment_b[j], from_b, warp_column + 16 * j, k);
        else
          load_b(fragment_b[j], from_b, warp_column + 16 * j, k);
      }
#pragma unroll
      for (int i = 0; i < kWarpRows / 16; ++i)
#pragma unroll
        for (int j = 0; j < kWarpColumns / 8; ++j) mma(sums[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
    }
  }
  copy_async_wait<0>();
#pragma unroll
  for (int i = 0; i < kWarpRows / 16; ++i)
#pragma unroll
    for (int j = 0; j < kWarpColumns / 8; ++j) {
      const std::int64_t row = first_row + warp_row + 16 * i + lane / 4, column = first_column + warp_column + 8 * j + lane % 4 * 2;
      out.store(row, column, sums[i][j][0], sums[i][j][1]);
      out.store(row + 8, column, sums[i][j][2], sums[i][j][3]);
    }
}

template <class Out>
void run(GemmForm form, View<const bf16> a, View<const bf16> b, const Epilogue<Out>& out, cudaStream_t stream) {
  const bool a_transposed = form == GemmForm::tn, b_transposed = form != GemmForm::nt;
  const std::int64_t m = a_transposed ? a.cols : a.rows, depth = a_transposed ? a.rows : a.cols;
  const std::int64_t n = b_transposed ? b.cols : b.rows, b_depth = b_transposed ? b.rows : b.cols;
  require(depth == b_depth && out.c.rows == m && out.c.cols == n, "a product of ", m, "x", depth, " and ", b_depth, "x", n, " into ", out.c.rows, "x", out.c.cols);
  const dim3 grid(blocks(ceil_div(m, kTile)), blocks(ceil_div(n, kTile)));
  constexpr std::int64_t kShared = std::int64_t{kStages} * 2 * (Tile<kTile, kDepth>::kValues > Tile<kDepth, kTile>::kValues ? Tile<kTile, kDepth>::kValues : Tile<kDepth, kTile>::kValues) * 2;
  switch (form) {
    case GemmForm::nt: launch(stream, grid, kThreads, kShared, multiply<false, false, Out>, a, b, out, depth); break;
    case GemmForm::nn: launch(stream, grid, kThreads, kShared, multiply<false, true, Out>, a, b, out, depth); break;
    case GemmForm::tn: launch(stream, grid, kThreads, kShared, multiply<true, true, Out>, a, b, out, depth); break;
  }
}

}  // namespace

void gemm_mma(GemmForm form, View<const bf16> a, View<const bf16> b, View<bf16> c, float alpha, float beta, const bf16* bias, cudaStream_t stream) {
  run<bf16>(form, a, b, {c, alpha, beta, bias}, stream);
}

void gemm_mma(GemmForm form, View<const bf16> a, View<const bf16> b, View<float> c, float alpha, float beta, const bf16* bias, cudaStream_t stream) {
  run<float>(form, a, b, {c, alpha, beta, bias}, stream);
}

}  // namespace engine::cuda
