#include "ops/elementwise.h"

#include <cmath>
#include <vector>

#include "core/error.h"
#include "ops/dispatch.h"
#include "ops/elementwise_rows.h"
#include "ops/reduce.h"

namespace engine {
namespace {

void add_scaled_row(const float* x, float alpha, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = std::fma(alpha, x[i], y[i]);
}

void scale_row(const float* x, float alpha, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = alpha * x[i];
}

void dropout_row(Philox stream, std::int64_t first, std::uint32_t threshold, float factor, const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = stream.word(static_cast<std::uint64_t>(first + i)) >= threshold ? x[i] * factor : 0.0f;
}

double sum_of_squares_row(const float* x, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
  return sum;
}

std::int32_t argmax_row(const float* x, std::int64_t n) {
  std::int64_t best = -1;
  for (std::int64_t i = 0; i < n; ++i)
    if (!std::isnan(x[i]) && (best < 0 || x[i] > x[best])) best = i;
  return static_cast<std::int32_t>(best < 0 ? 0 : best);
}

constexpr std::int64_t kGrain = 32768;

void require_same(ConstRows x, ConstRows y) {
  require(x.rows == y.rows && x.cols == y.cols, "shapes ", x.rows, "x", x.cols, " and ", y.rows, "x", y.cols, " differ");
}

template <class Body>
void for_rows(const Exec& ex, ConstRows y, Body body) {
  ex.pool.for_ranges(y.rows, kGrain / (y.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) body(r);
  });
}

}  // namespace

const ElementwiseRows elementwise_rows_scalar = {add_scaled_row, scale_row, dropout_row, sum_of_squares_row, argmax_row};

void add_scaled(const Exec& ex, ConstRows x, float alpha, Rows y) {
  require_same(x, y);
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  for_rows(ex, y, [&](std::int64_t r) { rows.add_scaled(x.row(r), alpha, y.cols, y.row(r)); });
}

void bias_add(const Exec& ex, const float* bias, Rows y) {
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  for_rows(ex, y, [&](std::int64_t r) { rows.add_scaled(bias, 1.0f, y.cols, y.row(r)); });
}

void scale(const Exec& ex, ConstRows x, float alpha, Rows y) {
  require_same(x, y);
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  for_rows(ex, y, [&](std::int64_t r) { rows.scale(x.row(r), alpha, y.cols, y.row(r)); });
}

void dropout(const Exec& ex, Philox stream, float p, ConstRows x, Rows y) {
  require_same(x, y);
  require(p >= 0.0f && p < 1.0f, "dropout probability is ", p, "; use 0 to below 1");
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  const auto threshold = static_cast<std::uint32_t>(std::llround(std::fmin(double{p} * 0x1p32, 4294967295.0)));
  const auto factor = static_cast<float>(1.0 / (1.0 - double{p}));
  ex.pool.for_ranges(y.rows, 4096 / (y.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) rows.dropout(stream, r * y.cols, threshold, factor, x.row(r), y.cols, y.row(r));
  });
}

double sum_of_squares(const Exec& ex, const float* x, std::int64_t n) {
  constexpr std::int64_t kPiece = 4096;
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  const std::int64_t pieces = (n + kPiece - 1) / kPiece;
  std::vector<double> sums(static_cast<std::size_t>(pieces));
  ex.pool.for_ranges(pieces, 8, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t piece = first; piece < last; ++piece) {
      const std::int64_t begin = piece * kPiece;
      sums[static_cast<std::size_t>(piece)] = rows.sum_of_squares(x + begin, n - begin < kPiece ? n - begin : kPiece);
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void bias_gradient(const Exec& ex, ConstRows dy, float* db) {
  if (dy.rows == 0 || dy.cols == 0) return;
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  constexpr std::int64_t kLine = 16;
  const std::int64_t lines = (dy.cols + kLine - 1) / kLine;
  ex.pool.for_ranges(lines, kGrain / (dy.rows * kLine) + 1, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kLine, end = last * kLine < dy.cols ? last * kLine : dy.cols;
    for (std::int64_t r = 0; r < dy.rows; ++r) rows.add_scaled(dy.row(r) + begin, 1.0f, end - begin, db + begin);
  });
}

void argmax_rows(const Exec& ex, ConstRows x, std::int32_t* out) {
  require(x.cols >= 1 || x.rows == 0, "argmax of rows without columns");
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  for_rows(ex, x, [&](std::int64_t r) { out[r] = rows.argmax(x.row(r), x.cols); });
}

}  // namespace engine
