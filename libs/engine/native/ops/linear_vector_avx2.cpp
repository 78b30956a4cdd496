#include "ops/linear_vector_simd.h"

namespace engine {

const LinearVectorRows linear_vector_rows_avx2 = {kLanes, rearrange_values, nf4_sums, bf16_sums, f32_sums, finish_sums, nf4_scale_values};

}  // namespace engine
