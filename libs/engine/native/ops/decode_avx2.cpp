#include "ops/decode_simd.h"

namespace engine {

const DecodeRows decode_rows_avx2 = {widen_16<load_bf16>, widen_16<load_f16>, round_bf16_row};

}  // namespace engine
