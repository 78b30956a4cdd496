#include "ops/attention_decode_simd.h"

namespace engine {

const AttentionDecodeRows attention_decode_rows_avx512 = {decode_scores, decode_softcap, decode_softmax, decode_add_values};

}  // namespace engine
