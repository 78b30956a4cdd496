// block_reduce.h: reductions over the threads of a block, in an order that depends on nothing but the block's size.
#pragma once

#include "cuda/runtime/ptx.h"

namespace engine::cuda {

// Every thread has the result. Blocks of at most 1024 threads; all threads take part.
template <class T>
ENGINE_DEVICE T block_sum(T value) {
  SHARED_ARRAY(T, sums, 32);
  const unsigned warps = blockDim.x / kWarp;
  value = warp_sum(value);
  __syncthreads();  // an earlier reduction may still be read
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = sums[0];
  for (unsigned w = 1; w < warps; ++w) total += sums[w];
  return total;
}

ENGINE_DEVICE float block_max(float value) {
  SHARED_ARRAY(float, maxima, 32);
  const unsigned warps = blockDim.x / kWarp;
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = value;
  __syncthreads();
  float largest = maxima[0];
  for (unsigned w = 1; w < warps; ++w) largest = fmaxf(largest, maxima[w]);
  return largest;
}

}  // namespace engine::cuda
