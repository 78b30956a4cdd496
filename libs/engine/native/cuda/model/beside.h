// beside.h: work that nothing on the way of a backward waits for, in a stream of its own: the sums of the adapters' gradients read much memory and compute
// little, the products on the way compute much, and each leaves room for the other.
#pragma once

#include "cuda/ops/gemm.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {

class Beside {
 public:
  // What is given to `stream` from now on runs after everything that was given to `main` so far.
  void begin(cudaStream_t main) {
    given_.record(main);
    given_.wait(stream);
  }
  void end() {
    done_.record(stream);
    waiting_ = true;
  }
  // What is given to `main` from now on runs after all of that: before its operands are overwritten.
  void join(cudaStream_t main) {
    if (waiting_) done_.wait(main);
    waiting_ = false;
  }

  const Stream stream;
  Gemm gemm;  // with a workspace of its own

 private:
  Event given_, done_;
  bool waiting_ = false;
};

}  // namespace engine::cuda
