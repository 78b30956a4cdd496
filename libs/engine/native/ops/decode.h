// decode.h: a stored weight's values as fp32.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// out[i] = element first + i of the flattened w, i in [0, count). On the calling thread. Exact: widening for f16 and bf16, one fp32
// product for NF4; the same bits with every instruction set. Throws unsupported for another type.
void decode_weight(Isa isa, const Matrix& w, std::int64_t first, std::int64_t count, float* out);

// Throws invalid when the view cannot be what it says (no data, negative sizes, NF4 without scales), unsupported for another type.
void require_weight(const Matrix& w);

}  // namespace engine
