// nf4_gemv.cu: 16 outputs a block; 8 warps take turns along K in steps of 64, one scale block of each row, and their sums are joined in their order.
//   Floor: 0.516 B · N · K over memory bandwidth. Decoding costs about 3.7 instructions a weight, of 4.7 that an H200 has while it reads one; the code
//   book is a shuffle, the products are the tensor cores' (weights as A, so one to eight rows of x cost the same).
#include "core/error.h"
#include "cuda/ops/nf4_decode.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kOutputs = 16, kStep = 64, kUnroll = 2;

struct Epilogue {
  const bf16* bias;
  View<const bf16> low, b;  // no low-rank term: data null
  View<bf16> y;
};

// The 16 codes that lane (g, t) takes of one row's 64: values 16t …, as bf16 pairs in the order of the products' A registers.
ENGINE_DEVICE void decode(uint2 codes, float book, float scale, std::uint32_t (&pairs)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t word = half == 0 ? codes.x : codes.y;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[4 * half + i] = pack(shuffle(book, word >> nf4_shift(2 * i), 16) * scale, shuffle(book, word >> nf4_shift(2 * i + 1), 16) * scale);
  }
}

// kTiles · 8 rows of x.
template <int kTiles>
__global__ void __launch_bounds__(kThreads) multiply(View<const bf16> x, DeviceNf4 weight, NfBook code_book, Epilogue out) {
  SHARED_ARRAY(float, partial, kWarps * kOutputs * kTiles * 8);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const float book = code_book.value[lane % 16];
  const std::int64_t depth = x.cols, first = std::int64_t{blockIdx.x} * kOutputs;
  const std::int64_t upper = first + g, lower = first + g + 8;
  float sums[kTiles][4] = {};
  for (std::int64_t base = std::int64_t{warp} * kStep; base < depth; base += kUnroll * kWarps * kStep) {
    uint2 codes[kUnroll][2] = {};
    float scales[kUnroll][2] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {  // all loads before the first use
      const std::int64_t k = base + std::int64_t{u} * kWarps * kStep;
      if (k >= depth) continue;
      if (upper < out.y.cols) {
        codes[u][0] = *reinterpret_cast<const uint2*>(weight.codes + (upper * depth + k) / 2 + 8 * t);
        scales[u][0] = nf4_scale(weight, (upper * depth + k) / kStep);
      }
      if (lower < out.y.cols) {
        codes[u][1] = *reinterpret_cast<const uint2*>(weight.codes + (lower * depth + k) / 2 + 8 * t);
        scales[u][1] = nf4_scale(weight, (lower * depth + k) / kStep);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = base + std::int64_t{u} * kWarps * kStep;
      if (k >= depth) break;  // the same for all lanes
      std::uint32_t above[8], below[8];
      decode(codes[u][0], book, scales[u][0], above);
      decode(codes[u][1], book, scales[u][1], below);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const std::int64_t row = 8 * n + g;
        uint4 values[2] = {};
        if (row < x.rows) {
          values[0] = load16(x.row(row) + k + 16 * t);
          values[1] = load16(x.row(row) + k + 16 * t + 8);
        }
        const std::uint32_t b[8] = {values[0].x, values[0].y, values[0].z, values[0].w, values[1].x, values[1].y, values[1].z, values[1].w};
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const std::uint32_t a[4] = {above[2 * p], below[2 * p], above[2 * p + 1], below[2 * p + 1]};
          mma(sums[n], a, b[2 * p], b[2 * p + 1]);
        }
      }
    }
  }
  constexpr int kColumns = 8 * kTiles;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[(warp * kOutputs + g + i / 2 * 8) * kColumns + 8 * n + 2 * t + i % 2] = sums[n][i];
  __syncthreads();
  for (int i = thread; i < kOutputs * kColumns; i += kThreads) {
    const std::int64_t output = first + i % kOutputs, row = i / kOutputs;  // neighbours write neighbours
    if (output >= out.y.cols || row >= out.y.rows) continue;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[(w * kOutputs + i % kOutputs) * kColumns + static_cast<int>(row)];
    if (out.bias != nullptr) total += widen(out.bias[output]);
    if (out.low.data != nullptr)
      for (std::int64_t j = 0; j < out.low.cols; ++j) total = fmaf(widen(out.low.row(row)[j]), widen(out.b.row(output)[j]), total);
    out.y.row(row)[output] = narrow(total);
  }
}

}  // namespace

void nf4_gemv(View<const bf16> x, const Matrix& weight, const bf16* bias, View<bf16> y, cudaStream_t stream, const GemvLowRank* low_rank) {
  require(x.rows >= 1 && x.rows <= 32, x.rows, " rows; a product by vectors takes 1 to ", 32);
  require(x.cols == weight.cols && x.cols % kStep == 0, "rows of ", x.cols, " values with a weight of ", weight.cols, "; the device takes multiples of ", kStep);
  require(y.rows == x.rows && y.cols == weight.rows, "the result is ", y.rows, "x", y.cols, " for ", x.rows, " rows and ", weight.rows, " outputs");
  Epilogue out{bias, {}, {}, y};
  if (low_rank != nullptr) {
    require(low_rank->low.rows == x.rows && low_rank->b.rows == y.cols && low_rank->low.cols == low_rank->b.cols, "the low-rank term has ", low_rank->low.rows, "x",
            low_rank->low.cols, " and ", low_rank->b.rows, "x", low_rank->b.cols);
    out.low = low_rank->low;
    out.b = low_rank->b;
  }
  if (y.cols == 0) return;
  launch(stream, blocks(ceil_div(y.cols, kOutputs)), kThreads, 0, x.rows <= 8 ? multiply<1> : x.rows <= 16 ? multiply<2> : multiply<4>, x, device_nf4(weight),
         nf4_book(), out);
}

}  // namespace engine::cuda
