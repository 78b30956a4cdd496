#include "ops/gemm_fma_simd.h"

namespace engine {

const GemmKernel gemm_kernel_avx2 = {.rows = kTileRows,
                                     .cols = kTileCols,
                                     .a_width = kLeftWidth,
                                     .depth_step = 1,
                                     .element_bytes = 4,
                                     .depth_block = 256,
                                     .pack_a = pack_fp32<kLeftWidth>,
                                     .pack_b = pack_fp32<kTileCols>,
                                     .pack_a_for_nf4 = nullptr,
                                     .lanes = static_cast<int>(kLanes),
                                     .pack_a_lanes = pack_lanes<kLeftWidth>,
                                     .pack_b_lanes = pack_lanes<kTileCols>,
                                     .pack_stored = nullptr,
                                     .tiles = fma_tiles};

}  // namespace engine
