#include "ops/rope_simd.h"

namespace engine {

const RopeRows rope_rows_avx512 = {rope_rotate};

}  // namespace engine
