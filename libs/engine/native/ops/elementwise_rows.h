// elementwise_rows.h: inner loops of elementwise.h and reduce.h for n contiguous values.
#pragma once

#include <cstdint>

#include "core/rng.h"

namespace engine {

struct ElementwiseRows {
  void (*add_scaled)(const float* x, float alpha, std::int64_t n, float* y);  // y = fma(alpha, x, y)
  void (*scale)(const float* x, float alpha, std::int64_t n, float* y);       // y = alpha · x
  // y = word(first + i) >= threshold ? x · factor : 0
  void (*dropout)(Philox stream, std::int64_t first, std::uint32_t threshold, float factor, const float* x, std::int64_t n, float* y);
  double (*sum_of_squares)(const float* x, std::int64_t n);
  std::int32_t (*argmax)(const float* x, std::int64_t n);
};

extern const ElementwiseRows elementwise_rows_scalar, elementwise_rows_avx2, elementwise_rows_avx512;

}  // namespace engine
