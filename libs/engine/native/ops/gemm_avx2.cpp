#include "ops/gemm_fma_simd.h"

namespace engine {

const GemmKernel gemm_kernel_avx2 = {kTileRows, kTileCols, 1, 4, 256, pack_fp32<kTileRows>, pack_fp32<kTileCols>, fma_tile};

}  // namespace engine
