#include "ops/gemm_fma_simd.h"

namespace engine {

const GemmKernel gemm_kernel_avx2 = {kTileRows, kTileCols, kLeftWidth, 1, 4, 256, pack_fp32<kLeftWidth>, pack_fp32<kTileCols>, nullptr, fma_tile};

}  // namespace engine
