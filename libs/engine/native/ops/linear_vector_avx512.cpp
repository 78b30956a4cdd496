#include "ops/linear_vector_simd.h"

namespace engine {

const LinearVectorRows linear_vector_rows_avx512 = {rearrange_values, nf4_rows_of, bf16_rows_of, f32_rows_of, nf4_scale_values};

}  // namespace engine
