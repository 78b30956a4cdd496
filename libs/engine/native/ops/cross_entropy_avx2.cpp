#include "ops/cross_entropy_simd.h"

namespace engine {

const CrossEntropyRows cross_entropy_rows_avx2 = {log_sum_exp_row, gradient_values, softcap_values};

}  // namespace engine
