#include "ops/gemm_dot_pairs_simd.h"

namespace engine {

const GemmKernel gemm_kernel_avx512bf16 = dot_pairs_kernel::kKernel;

}  // namespace engine
