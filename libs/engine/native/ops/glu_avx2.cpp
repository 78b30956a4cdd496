#include "ops/glu_simd.h"

namespace engine {

const GluRows glu_rows_avx2 = {glu_forward_row, glu_backward_row};

}  // namespace engine
