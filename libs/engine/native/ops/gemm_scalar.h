// gemm_scalar.h: the definition of a matrix product, one output at a time. Used when no vector instructions are, and by tests.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// An fp32 operand that may be read transposed: element (i, k) at data[i * row_stride + k * col_stride].
struct Operand {
  const float* data;
  std::int64_t row_stride, col_stride;
};

// c[M,N] (+)= alpha · Σ_k a(m,k) · b(n,k), operands rounded as ex.compute says, summed in fp64.
void gemm_scalar(const Exec& ex, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Operand a, Operand b, Rows c, bool accumulate);

// linear.h's two, for a weight of any type.
void linear_scalar(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate);
void linear_backward_input_scalar(const Exec& ex, ConstRows dy, const Matrix& w, Rows dx, bool accumulate);

}  // namespace engine
