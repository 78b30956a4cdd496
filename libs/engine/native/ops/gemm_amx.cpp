#include "ops/tile_vector_simd.h"

namespace engine {

const GemmKernel gemm_kernel_amx = amx::kKernel;
const FewRows few_rows_amx = amx::kFewRowsKernel;

}  // namespace engine
