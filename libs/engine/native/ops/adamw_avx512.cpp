#include "ops/adamw_simd.h"

namespace engine {

const AdamWRows adamw_rows_avx512 = {adamw_values, adamw_block};

}  // namespace engine
