// rmsnorm_rows.h: inner loops of rmsnorm.h for one group of n columns.
#pragma once

#include <cstdint>

namespace engine {

struct RmsNormRows {
  float (*forward)(const float* x, const float* w, float offset, float eps, std::int64_t n, float* y);  // returns rstd
  void (*backward)(const float* x, const float* w, float offset, float rstd, const float* dy, std::int64_t n, float* dx, bool accumulate);
  void (*weight)(const float* x, float rstd, const float* dy, std::int64_t n, float* dw);  // dw += dy · x · rstd
};

extern const RmsNormRows rmsnorm_rows_scalar, rmsnorm_rows_avx2, rmsnorm_rows_avx512;

}  // namespace engine
