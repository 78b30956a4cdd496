#include "core/error.h"
#include "ops/decode.h"
#include "ops/gemm_blocked.h"
#include "ops/gemm_scalar.h"
#include "ops/linear.h"
#include "ops/linear_vector.h"

namespace engine {

void linear(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate) {
  require_weight(w);
  require(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows, "linear: x ", x.rows, "x", x.cols, ", w ", w.rows, "x", w.cols, ", y ", y.rows,
          "x", y.cols, " do not fit");
  if (y.rows == 0 || y.cols == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel == nullptr) return linear_scalar(ex, x, w, bias, y, accumulate);
  if (x.rows <= kVectorRows) return linear_vector(ex, x, w, bias, y, accumulate);
  gemm_blocked(ex, *kernel, y.rows, y.cols, x.cols, 1.0f, {x.data, x.stride, 1}, {{}, &w, false}, bias, y, accumulate);
}

void linear_backward_input(const Exec& ex, ConstRows dy, const Matrix& w, Rows dx, bool accumulate) {
  require_weight(w);
  require(dy.cols == w.rows && dx.cols == w.cols && dy.rows == dx.rows, "linear backward: dy ", dy.rows, "x", dy.cols, ", w ", w.rows, "x", w.cols,
          ", dx ", dx.rows, "x", dx.cols, " do not fit");
  if (dx.rows == 0 || dx.cols == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel == nullptr) return linear_backward_input_scalar(ex, dy, w, dx, accumulate);
  gemm_blocked(ex, *kernel, dx.rows, dx.cols, dy.cols, 1.0f, {dy.data, dy.stride, 1}, {{}, &w, true}, nullptr, dx, accumulate);
}

void dequantize_rows(const Matrix& w, std::int64_t first_row, std::int64_t row_count, float* out) {
  require_weight(w);
  require(first_row >= 0 && row_count >= 0 && first_row + row_count <= w.rows, "rows ", first_row, " to ", first_row + row_count, " of a weight of ", w.rows);
  decode_weight(detected_isa(), w, first_row * w.cols, row_count * w.cols, out);  // the same bits with every instruction set
}

}  // namespace engine
