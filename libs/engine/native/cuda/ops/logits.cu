// logits.cu: a block of threads for each row; memory bandwidth is the limit (4 B for each logit read, twice).
#include <cmath>

#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/logits.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 512;

__global__ void __launch_bounds__(kThreads) softcap_rows(View<float> logits, float cap) {
  float* row = logits.row(blockIdx.x);
  for (std::int64_t i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x; i < logits.cols; i += std::int64_t{gridDim.y} * kThreads) row[i] = cap * tanhf(row[i] / cap);
}

__global__ void __launch_bounds__(kThreads) log_prob_rows(View<const float> logits, const std::uint32_t* targets, const std::int32_t* only, float* logprobs) {
  if (only != nullptr && only[blockIdx.x] < 0) return;
  const float* row = logits.row(blockIdx.x);
  float largest = -INFINITY;
  for (std::int64_t i = threadIdx.x; i < logits.cols; i += kThreads) largest = fmaxf(largest, row[i]);
  largest = block_max(largest);
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < logits.cols; i += kThreads) sum += static_cast<double>(expf(row[i] - largest));
  sum = block_sum(sum);
  if (threadIdx.x == 0) logprobs[blockIdx.x] = static_cast<float>(static_cast<double>(row[targets[blockIdx.x]]) - largest - log(sum));
}

}  // namespace

void softcap_logits(View<float> logits, float softcap, cudaStream_t stream) {
  if (softcap == 0 || logits.rows == 0) return;
  launch(stream, dim3(blocks(logits.rows), blocks(ceil_div(logits.cols, 8 * kThreads))), kThreads, 0, softcap_rows, logits, softcap);
}

void log_probs(View<const float> logits, const std::uint32_t* targets, const std::int32_t* only, float* logprobs, cudaStream_t stream) {
  require(logits.cols > 0, "rows of no logits have no log-probabilities");
  launch(stream, blocks(logits.rows), kThreads, 0, log_prob_rows, logits, targets, only, logprobs);
}

}  // namespace engine::cuda
