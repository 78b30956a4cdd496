#include "ops/attention_simd.h"

namespace engine {

const AttentionRows attention_rows_avx2 = {attention_probabilities, attention_gradients, attention_dot};

}  // namespace engine
