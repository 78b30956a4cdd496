// The kernels of gemm_amx.cpp and gemm_avx512bf16.cpp over the definitions of their instructions, for the tests of machines without those. Packing is as it is
// beside AMX, so AVX-512 VBMI and VBMI2 are needed.
#define ENGINE_SOFTWARE_BF16
#include "ops/gemm_dot_pairs_simd.h"
#include "ops/tile_vector_simd.h"

namespace engine {

const GemmKernel gemm_kernel_amx_software = amx::kKernel;
const FewRows few_rows_amx_software = amx::kFewRowsKernel;
const GemmKernel gemm_kernel_avx512bf16_software = dot_pairs_kernel::kKernel;

}  // namespace engine
