// adamw_rows.h: inner loops of adamw.h.
#pragma once

#include <cstdint>

#include "ops/adamw.h"

namespace engine {

// What one step needs, computed once in fp64 and rounded.
struct AdamWConstants {
  float beta1, beta2, one_minus_beta1, one_minus_beta2;
  float step_size;     // lr · c2 / c1
  float epsilon;       // c2 · ε
  float decay;         // 1 - lr · λ
  bool decay_before;
  float grad_scale;
};

// Throws invalid for a step below 1.
AdamWConstants adamw_constants(const AdamW& adamw);

struct AdamWRows {
  void (*f32)(const AdamWConstants& c, float* p, const float* g, float* m, float* v, std::int64_t n);
  // One block of n ≤ 256 values: new states in m and v (fp32 scratch of the caller), p updated.
  void (*block8)(const AdamWConstants& c, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax, float* v_absmax,
                 std::int64_t n);
};

extern const AdamWRows adamw_rows_scalar, adamw_rows_avx2, adamw_rows_avx512;

}  // namespace engine
