// glu_rows.h: inner loops of glu.h for n contiguous values.
#pragma once

#include <cstdint>

#include "ops/glu.h"

namespace engine {

struct GluRows {
  void (*forward)(Activation act, const float* gate, const float* up, std::int64_t n, float* out);
  void (*backward)(Activation act, const float* gate, const float* up, const float* dout, std::int64_t n, float* dgate, float* dup);
};

extern const GluRows glu_rows_scalar, glu_rows_avx2, glu_rows_avx512;

}  // namespace engine
