// cuda.h: the CUDA runtime, or the emulation of it that the native tests run on (emulation/README.md).
//   The same sources are compiled twice: by nvcc into libengine_cuda.so, and by the C++ compiler with ENGINE_CUDA_EMULATED.
//   Kernels use what both have: threadIdx … gridDim, __syncthreads, and the warp, copy and matrix instructions of ptx.h.
#pragma once

#ifdef ENGINE_CUDA_EMULATED
#include "cuda/runtime/emulation/cuda_api.h"
#include "cuda/runtime/emulation/execution.h"
#else
#include <cuda_runtime.h>
#endif
