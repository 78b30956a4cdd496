#include "ops/nf4_simd.h"

namespace engine {

const Nf4Rows nf4_rows_avx512 = {nf4_quantize_block, nf4_decode_block};

}  // namespace engine
