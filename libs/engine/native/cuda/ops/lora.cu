// lora.cu: the scratch's tail, and gradients on their way from the products' layout to the adapters'. Bytes: the tail is written once, 2 B a value; a
// gradient's sums are read and the gradient is read and written, 4 B a value each.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/lora.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

// ---- the scratch's tail

constexpr unsigned kPackThreads = 256;

struct Parts {
  LoraPart part[kMostLoraParts];
  int count;
};

// A thread writes 8 values: of a tail row (A's row of the part whose slot that row is in, or zeros), or of the tail columns of one row of W.
__global__ void __launch_bounds__(kPackThreads) pack_tail(Parts parts, View<bf16> scratch, std::int64_t outputs, std::int64_t inputs, std::int64_t tail) {
  const std::int64_t item = std::int64_t{blockIdx.x} * kPackThreads + threadIdx.x, input_runs = inputs / 8, row_items = tail * input_runs, runs = tail / 8;
  float values[8] = {};
  if (item < row_items) {
    const std::int64_t slot = item / input_runs, first = item % input_runs * 8;
    for (int p = 0; p < parts.count; ++p) {
      const std::int64_t j = slot - parts.part[p].first_slot;
      if (j < 0 || j >= parts.part[p].rank) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = parts.part[p].a[j * inputs + first + i];
    }
    store16(scratch.row(outputs + slot) + first, pack8(values));
    return;
  }
  const std::int64_t n = (item - row_items) / runs, slot = (item - row_items) % runs * 8;
  if (n >= outputs) return;
  for (int p = 0; p < parts.count; ++p) {
    const LoraPart& part = parts.part[p];
    const std::int64_t row = n - part.first_output;
    if (row < 0 || row >= part.outputs) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::int64_t j = slot + i - part.first_slot;
      if (j >= 0 && j < part.rank) values[i] = part.scale * part.b[row * part.rank + j];
    }
  }
  store16(scratch.row(n) + inputs + slot, pack8(values));
}

// ---- gradients: a thread takes one column of 8 rows of sums, so that reads run along a row and a gradient of B is written 8 values at a time. All is
// read before anything is written: the loads are in flight together.

constexpr unsigned kAddThreads = 128;
constexpr int kAddRows = 8;

struct Gradients {
  LoraGradient part[kMostLoraGradients];
};

__global__ void __launch_bounds__(kAddThreads) add_gradients(Gradients all) {
  const LoraGradient& gradient = all.part[blockIdx.y];
  const std::int64_t column = std::int64_t{blockIdx.x} * kAddThreads + threadIdx.x, first = std::int64_t{blockIdx.z} * kAddRows;
  const std::int64_t rank = gradient.sums.rows, columns = gradient.sums.cols;
  if (column >= columns) return;
  const std::int64_t step = gradient.of_b ? 1 : columns;
  float* to = gradient.grad + (gradient.of_b ? column * rank + first : first * columns + column);
  const float* from = gradient.sums.data + first * gradient.sums.stride + column;
  float values[kAddRows], sums[kAddRows];
#pragma unroll
  for (int j = 0; j < kAddRows; ++j) {
    const bool inside = first + j < rank;
    sums[j] = inside ? from[j * gradient.sums.stride] : 0.0f;
    values[j] = inside ? to[j * step] : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < kAddRows; ++j)
    if (first + j < rank) to[j * step] = fmaf(gradient.scale, sums[j], values[j]);
}

}  // namespace

void lora_pack(std::span<const LoraPart> parts, View<bf16> scratch, std::int64_t tail, cudaStream_t stream) {
  require(!parts.empty() && static_cast<std::int64_t>(parts.size()) <= kMostLoraParts, parts.size(), " adapters in one scratch; it takes 1 to ", kMostLoraParts);
  require(tail % kSlot == 0 && tail > 0 && scratch.rows > tail && scratch.cols > tail && (scratch.cols - tail) % 8 == 0, "a tail of ", tail, " in a scratch of ",
          scratch.rows, "x", scratch.cols);
  Parts all{};
  all.count = static_cast<int>(parts.size());
  const std::int64_t outputs = scratch.rows - tail, inputs = scratch.cols - tail;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const LoraPart& p = parts[i];
    require(p.rank > 0 && p.first_slot % kSlot == 0 && p.first_slot + slot_columns(p.rank) <= tail, "rank ", p.rank, " at column ", p.first_slot, " of a tail of ", tail);
    require(p.first_output >= 0 && p.first_output + p.outputs <= outputs, "outputs ", p.first_output, "+", p.outputs, " of ", outputs);
    all.part[i] = p;
  }
  launch(stream, blocks(ceil_div(tail * (inputs / 8) + outputs * (tail / 8), kPackThreads)), kPackThreads, 0, pack_tail, all, scratch, outputs, inputs, tail);
}

void lora_add_gradients(std::span<const LoraGradient> gradients, cudaStream_t stream) {
  require(!gradients.empty() && static_cast<std::int64_t>(gradients.size()) <= kMostLoraGradients, gradients.size(), " gradients in one call; it takes 1 to ",
          kMostLoraGradients);
  Gradients all{};
  std::int64_t columns = 0, rank = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    all.part[i] = gradients[i];
    columns = std::max(columns, gradients[i].sums.cols);
    rank = std::max(rank, gradients[i].sums.rows);
  }
  const dim3 grid(blocks(ceil_div(columns, kAddThreads)), blocks(static_cast<std::int64_t>(gradients.size())), blocks(ceil_div(rank, kAddRows)));
  launch(stream, grid, kAddThreads, 0, add_gradients, all);
}

}  // namespace engine::cuda
