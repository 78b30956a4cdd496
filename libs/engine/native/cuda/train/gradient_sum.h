// gradient_sum.h: gradients of the replicas of one run, added up. Every replica ends with the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

// One replica's part of a sum.
struct SumPart {
  int device;
  float* values;  // [n], on that device; becomes the sum
  cudaStream_t stream;
};

class GradientSum {
 public:
  virtual ~GradientSum() = default;
  // Each part's [n] becomes the sum of all, after the work given to the parts' streams so far.
  virtual void add_up(std::span<const SumPart> parts, std::int64_t n) = 0;
  virtual std::string_view library() const noexcept = 0;
};

// By NCCL where it can be opened (device to device, asynchronous), else through host memory in the order of the parts. Never uses NVLink multicast.
// `devices` in the order of the parts of every call.
std::unique_ptr<GradientSum> make_gradient_sum(std::span<const int> devices);
// Through host memory alone.
std::unique_ptr<GradientSum> make_host_gradient_sum();

}  // namespace engine::cuda
