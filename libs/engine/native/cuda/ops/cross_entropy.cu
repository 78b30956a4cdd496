// cross_entropy.cu: one block a row, read twice and written once: 6 B a logit, of which the second read is mostly served by the second-level cache (132
// rows of 152,064 logits are 40 MB). Memory bandwidth is the limit.
#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/cross_entropy.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 1024;

ENGINE_DEVICE float capped(float z, float softcap) { return softcap > 0 ? softcap * tanhf(z / softcap) : z; }

// A running maximum and the sum of exp(z - maximum).
struct Partition {
  float largest, sum;
  ENGINE_DEVICE void add(float z) {
    if (z == -infinity()) return;
    if (z > largest) {
      sum = sum * exp_fast(largest - z) + 1.0f;
      largest = z;
    } else {
      sum += exp_fast(z - largest);
    }
  }
  // Eight logits with one rescaling instead of a branch for each.
  ENGINE_DEVICE void add8(uint4 packed, float softcap) {
    float values[8];
    widen8(packed, values);
    float top = largest;
#pragma unroll
    for (float& value : values) {
      value = capped(value, softcap);
      top = fmaxf(top, value);
    }
    if (top == -infinity()) return;  // nothing yet to be relative to
    if (top > largest) sum *= exp_fast(largest - top);
    largest = top;
#pragma unroll
    for (const float value : values) sum += exp_fast(value - top);
  }
};

__global__ void __launch_bounds__(kThreads)
    loss_and_gradient(View<bf16> logits, const std::uint32_t* targets, const float* weights, float softcap, bool want_gradient, float* losses) {
  const std::int64_t row = blockIdx.x;
  bf16* z = logits.row(row);
  const std::int64_t whole = logits.cols / 8 * 8;
  Partition mine{-infinity(), 0.0f};
  for (std::int64_t c = 8 * threadIdx.x; c < whole; c += 16 * kThreads) {
    const bool two = c + 8 * kThreads < whole;  // two loads under way at a time: a block alone must keep its memory busy
    const uint4 first = load16(z + c), second = two ? load16(z + c + 8 * kThreads) : uint4{0, 0, 0, 0};
    mine.add8(first, softcap);
    if (two) mine.add8(second, softcap);
  }
  if (whole + threadIdx.x < logits.cols) mine.add(capped(widen(z[whole + threadIdx.x]), softcap));

  const std::uint32_t target = targets[row];
  const float at_target = capped(widen(z[target]), softcap);
  const float largest = block_max(mine.largest);
  const float total = block_sum(mine.sum > 0 ? mine.sum * exp_fast(mine.largest - largest) : 0.0f);
  if (threadIdx.x == 0) losses[row] = logf(total) + (largest - at_target);
  if (!want_gradient) return;
  __syncthreads();  // every thread has read the target's logit

  const float weight = weights[row], inverse = 1.0f / total;
  const auto gradient = [&](float logit, std::int64_t column) {
    const float value = capped(logit, softcap);
    float slope = weight * (exp_fast(value - largest) * inverse - (column == target ? 1.0f : 0.0f));
    if (softcap > 0) slope *= 1.0f - value / softcap * (value / softcap);
    return weight == 0.0f ? 0.0f : slope;
  };
  const auto rewrite = [&](std::int64_t c, uint4 packed) {
    float values[8];
    widen8(packed, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = gradient(values[i], c + i);
    store16(z + c, pack8(values));
  };
  for (std::int64_t c = 8 * threadIdx.x; c < whole; c += 16 * kThreads) {
    const bool two = c + 8 * kThreads < whole;
    const uint4 first = load16(z + c), second = two ? load16(z + c + 8 * kThreads) : uint4{0, 0, 0, 0};
    rewrite(c, first);
    if (two) rewrite(c + 8 * kThreads, second);
  }
  const std::int64_t tail = whole + threadIdx.x;
  if (tail < logits.cols) z[tail] = narrow(gradient(widen(z[tail]), tail));
}

constexpr unsigned kSumThreads = 1024;

__global__ void __launch_bounds__(kSumThreads) add_weighted(const float* losses, const float* weights, std::int64_t rows, double* sum, std::int64_t* count) {
  double mine = 0;
  long long labelled = 0;
  for (std::int64_t r = threadIdx.x; r < rows; r += kSumThreads) {
    if (weights[r] == 0.0f) continue;
    mine += double{weights[r]} * losses[r];
    ++labelled;
  }
  mine = block_sum(mine);
  labelled = block_sum(labelled);
  if (threadIdx.x != 0) return;
  *sum += mine;
  if (count != nullptr) *count += labelled;
}

}  // namespace

void cross_entropy(View<bf16> logits, const std::uint32_t* targets, const float* weights, float softcap, LogitGradient gradient, float* losses,
                   cudaStream_t stream) {
  require(logits.cols > 0 || logits.rows == 0, "rows of no logits");
  launch(stream, blocks(logits.rows), kThreads, 0, loss_and_gradient, logits, targets, weights, softcap, gradient == LogitGradient::in_place, losses);
}

void add_losses(const float* losses, const float* weights, std::int64_t rows, double* sum, std::int64_t* count, cudaStream_t stream) {
  if (rows > 0) launch(stream, 1, kSumThreads, 0, add_weighted, losses, weights, rows, sum, count);
}

}  // namespace engine::cuda
