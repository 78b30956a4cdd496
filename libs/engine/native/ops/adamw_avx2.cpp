#include "ops/adamw_simd.h"

namespace engine {

const AdamWRows adamw_rows_avx2 = {adamw_values, adamw_block};

}  // namespace engine
