#include "core/error.h"
#include "ops/gemm.h"
#include "ops/gemm_blocked.h"
#include "ops/gemm_scalar.h"

namespace engine {
namespace {

void gemm(const Exec& ex, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Operand a, Operand b, Rows c, bool accumulate) {
  require(c.rows == m && c.cols == n, "gemm: a product of ", m, "x", n, " does not fit ", c.rows, "x", c.cols);
  if (m == 0 || n == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel == nullptr) return gemm_scalar(ex, m, n, k, alpha, a, b, c, accumulate);
  gemm_blocked(ex, *kernel, m, n, k, alpha, a, {b, nullptr, false}, nullptr, c, accumulate);
}

}  // namespace

void gemm_tn(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha, bool accumulate) {
  require(a.rows == b.rows, "gemm_tn: ", a.rows, " and ", b.rows, " rows to sum over");
  gemm(ex, a.cols, b.cols, a.rows, alpha, {a.data, 1, a.stride}, {b.data, 1, b.stride}, c, accumulate);
}

void gemm_nt(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha, bool accumulate) {
  require(a.cols == b.cols, "gemm_nt: ", a.cols, " and ", b.cols, " columns to sum over");
  gemm(ex, a.rows, b.rows, a.cols, alpha, {a.data, a.stride, 1}, {b.data, b.stride, 1}, c, accumulate);
}

void gemm_nn(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha, bool accumulate) {
  require(a.cols == b.rows, "gemm_nn: ", a.cols, " columns and ", b.rows, " rows to sum over");
  gemm(ex, a.rows, b.cols, a.cols, alpha, {a.data, a.stride, 1}, {b.data, 1, b.stride}, c, accumulate);
}

}  // namespace engine
