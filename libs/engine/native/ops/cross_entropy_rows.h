// cross_entropy_rows.h: inner loops of cross_entropy.h for one row of n logits.
#pragma once

#include <cstdint>

namespace engine {

struct CrossEntropyRows {
  float (*log_sum_exp)(const float* logits, std::int64_t n, float softcap);
  // logits ← weight · exp(z - lse) · cap', without the target's -weight · cap'(target), which the caller adds.
  void (*gradient)(float* logits, std::int64_t n, float lse, float weight, float softcap);
  void (*softcap)(float* logits, std::int64_t n, float softcap);
};

extern const CrossEntropyRows cross_entropy_rows_scalar, cross_entropy_rows_avx2, cross_entropy_rows_avx512;

}  // namespace engine
