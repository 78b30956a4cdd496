#include "ops/gemm_amx_simd.h"

namespace engine {

const GemmKernel gemm_kernel_amx = amx::kKernel;

}  // namespace engine
