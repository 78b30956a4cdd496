// error.h: CUDA's error codes as engine::Error.
//   cudaErrorMemoryAllocation → oom, and the process stays usable. A fault inside a kernel, a lost device or a missing driver → device_lost:
//   every later call of this process would fail too. Anything else → internal.
#pragma once

#include "core/error.h"
#include "cuda/runtime/cuda.h"

namespace engine::cuda {

// Throws what `status` means; `expression`, `file` and `line` say which call returned it.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* expression, const char* file, int line);

}  // namespace engine::cuda

#define CUDA_CHECK(expression)                                                                                        \
  do {                                                                                                                \
    const cudaError_t engine_status = (expression);                                                                   \
    if (engine_status != cudaSuccess) [[unlikely]]                                                                    \
      ::engine::cuda::throw_cuda_error(engine_status, #expression, __FILE__, __LINE__);                               \
  } while (false)
