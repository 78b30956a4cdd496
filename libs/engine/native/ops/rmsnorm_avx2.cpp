#include "ops/rmsnorm_simd.h"

namespace engine {

const RmsNormRows rmsnorm_rows_avx2 = {rmsnorm_forward_row, rmsnorm_backward_row, rmsnorm_weight_row};

}  // namespace engine
