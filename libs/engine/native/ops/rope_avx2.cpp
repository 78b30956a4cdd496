#include "ops/rope_simd.h"

namespace engine {

const RopeRows rope_rows_avx2 = {rope_rotate};

}  // namespace engine
