// nccl.h: the few functions of NCCL 2 that a gradient sum needs, opened by name. Its types are declared here as nccl.h declares them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

using ncclComm_t = struct ncclComm*;

class Nccl {
 public:
  // Opens libnccl.so.2 once: in the folder that MEDMESH_CUDA_LIBRARIES names, or where the loader looks. Null when there is none. Turns NVLink multicast
  // off for the process (NCCL_NVLS_ENABLE=0) unless its owner has said otherwise.
  static const Nccl* find();

  // One communicator for each device, in one process. These throw internal with NCCL's message.
  std::vector<ncclComm_t> open(std::span<const int> devices) const;
  void close(ncclComm_t communicator) const noexcept;
  void begin() const;
  void end() const;
  // values [n] fp32 ← their sum over all communicators, in place, on each device's stream.
  void sum(float* values, std::int64_t n, ncclComm_t communicator, cudaStream_t stream) const;

 private:
  void check(int status, const char* call) const;

  int (*init_all_)(ncclComm_t*, int, const int*) = nullptr;
  int (*destroy_)(ncclComm_t) = nullptr;
  int (*group_start_)() = nullptr;
  int (*group_end_)() = nullptr;
  int (*all_reduce_)(const void*, void*, std::size_t, int, int, ncclComm_t, cudaStream_t) = nullptr;
  const char* (*error_string_)(int) = nullptr;
};

}  // namespace engine::cuda
