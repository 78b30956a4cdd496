#include "ops/elementwise_simd.h"

namespace engine {

const ElementwiseRows elementwise_rows_avx2 = {add_scaled_values, scale_values, dropout_values, sum_of_squares_values, argmax_values};

}  // namespace engine
