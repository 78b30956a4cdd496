#include "ops/rmsnorm.h"

#include <cmath>

#include "core/error.h"
#include "ops/dispatch.h"
#include "ops/rmsnorm_rows.h"

namespace engine {
namespace {

float forward(const float* x, const float* w, float offset, float eps, std::int64_t n, float* y) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
  const auto rstd = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + double{eps}));
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * rstd * (w[i] + offset);
  return rstd;
}

void backward(const float* x, const float* w, float offset, float rstd, const float* dy, std::int64_t n, float* dx, bool accumulate) {
  double dot = 0;
  for (std::int64_t i = 0; i < n; ++i) dot += double{dy[i]} * (w[i] + offset) * x[i];
  const auto correction = static_cast<float>(double{rstd} * rstd * dot / static_cast<double>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const float gradient = rstd * (dy[i] * (w[i] + offset) - x[i] * correction);
    dx[i] = accumulate ? dx[i] + gradient : gradient;
  }
}

void weight(const float* x, float rstd, const float* dy, std::int64_t n, float* dw) {
  for (std::int64_t i = 0; i < n; ++i) dw[i] += dy[i] * (x[i] * rstd);
}

// Elements too few to be worth another thread.
constexpr std::int64_t kGrain = 16384;

void require_shapes(const RmsNorm& norm, ConstRows x, ConstRows y) {
  require(norm.width > 0 && x.cols % norm.width == 0, "rmsnorm: ", x.cols, " columns are not groups of ", norm.width);
  require(x.rows == y.rows && x.cols == y.cols, "rmsnorm: shapes ", x.rows, "x", x.cols, " and ", y.rows, "x", y.cols, " differ");
}

}  // namespace

const RmsNormRows rmsnorm_rows_scalar = {forward, backward, weight};

void rmsnorm_forward(const Exec& ex, const RmsNorm& norm, ConstRows x, Rows y, float* rstd) {
  require_shapes(norm, x, y);
  if (x.rows == 0 || x.cols == 0) return;
  const RmsNormRows& rows = ENGINE_ROWS(ex.isa, rmsnorm_rows);
  const std::int64_t groups = x.cols / norm.width;
  ex.pool.for_ranges(x.rows, kGrain / x.cols + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t at = g * norm.width;
        const float value = rows.forward(x.row(r) + at, norm.weight, norm.offset, norm.eps, norm.width, y.row(r) + at);
        if (rstd != nullptr) rstd[r * groups + g] = value;
      }
  });
}

void rmsnorm_backward(const Exec& ex, const RmsNorm& norm, ConstRows x, const float* rstd, ConstRows dy, Rows dx, bool accumulate) {
  require_shapes(norm, x, dy);
  require_shapes(norm, x, dx);
  if (x.rows == 0 || x.cols == 0) return;
  const RmsNormRows& rows = ENGINE_ROWS(ex.isa, rmsnorm_rows);
  const std::int64_t groups = x.cols / norm.width;
  ex.pool.for_ranges(x.rows, kGrain / x.cols + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t at = g * norm.width;
        rows.backward(x.row(r) + at, norm.weight, norm.offset, rstd[r * groups + g], dy.row(r) + at, norm.width, dx.row(r) + at, accumulate);
      }
  });
}

void rmsnorm_backward_weight(const Exec& ex, const RmsNorm& norm, ConstRows x, const float* rstd, ConstRows dy, float* dweight) {
  require_shapes(norm, x, dy);
  if (x.rows == 0 || x.cols == 0) return;
  const RmsNormRows& rows = ENGINE_ROWS(ex.isa, rmsnorm_rows);
  const std::int64_t groups = x.cols / norm.width;
  // Each part owns columns of the weight and adds all rows to them in order. Ranges are whole cache lines.
  constexpr std::int64_t kLine = 16;
  const std::int64_t lines = (norm.width + kLine - 1) / kLine;
  ex.pool.for_ranges(lines, kGrain / (x.rows * groups * kLine) + 1, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kLine, end = last * kLine < norm.width ? last * kLine : norm.width;
    for (std::int64_t r = 0; r < x.rows; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t at = g * norm.width + begin;
        rows.weight(x.row(r) + at, rstd[r * groups + g], dy.row(r) + at, end - begin, dweight + begin);
      }
  });
}

}  // namespace engine
