#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/decode.h"
#include "ops/dora.h"
#include "ops/gemm.h"

namespace engine {
namespace {

constexpr std::int64_t kChunkElements = std::int64_t{1} << 20;  // 4 MB of V at a time
constexpr std::int64_t kGrain = 32768;

float inverse_norm(const float* row, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{row[i]} * row[i];
  return sum > 0 ? static_cast<float>(1.0 / std::sqrt(sum)) : 0.0f;
}

}  // namespace

std::int64_t dora_chunk_rows(const Matrix& w) { return std::min(w.rows, std::max<std::int64_t>(1, kChunkElements / std::max<std::int64_t>(1, w.cols))); }

void dora_inverse_norms(const Exec& ex, const Matrix& w, ConstRows a, ConstRows b, float scale, Rows scratch, float* inverse) {
  require(a.cols == w.cols && b.rows == w.rows && a.rows == b.cols && scratch.cols == w.cols && scratch.rows >= dora_chunk_rows(w), "dora: w ", w.rows, "x", w.cols,
          ", a ", a.rows, "x", a.cols, ", b ", b.rows, "x", b.cols, ", scratch ", scratch.rows, "x", scratch.cols, " do not fit");
  const Exec exact{ex.pool, ex.isa, Compute::f32};
  for (std::int64_t first = 0; first < w.rows; first += scratch.rows) {
    const std::int64_t count = std::min(scratch.rows, w.rows - first);
    const Rows v(scratch.data, count, w.cols);
    ex.pool.for_ranges(count, kGrain / w.cols + 1, [&](std::int64_t begin, std::int64_t end) {
      decode_weight(ex.isa, w, (first + begin) * w.cols, (end - begin) * w.cols, v.row(begin));
    });
    gemm_nn(exact, ConstRows(b.row(first), count, b.cols, b.stride), a, v, scale, true);
    ex.pool.for_ranges(count, kGrain / w.cols + 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) inverse[first + row] = inverse_norm(v.row(row), w.cols);
    });
  }
}

void dora_scale(const Exec& ex, ConstRows x, DoraFactor factor, const float* bias, Rows y, bool accumulate) {
  require(x.rows == y.rows && x.cols == y.cols, "dora: x ", x.rows, "x", x.cols, " and y ", y.rows, "x", y.cols, " differ");
  ex.pool.for_ranges(y.rows, kGrain / (y.cols + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* from = x.row(t);
      float* to = y.row(t);
      for (std::int64_t n = 0; n < y.cols; ++n) {
        const float c = factor.magnitude != nullptr ? factor.magnitude[n] * factor.inverse[n] : 1.0f;
        const float value = bias != nullptr ? std::fma(c, from[n], bias[n]) : c * from[n];
        to[n] = accumulate ? to[n] + value : value;
      }
    }
  });
}

void dora_magnitude_backward(const Exec& ex, ConstRows dy, ConstRows u, const float* inverse, float* dmagnitude) {
  require(dy.rows == u.rows && dy.cols == u.cols, "dora: dy ", dy.rows, "x", dy.cols, " and u ", u.rows, "x", u.cols, " differ");
  constexpr std::int64_t kColumns = 64;  // a part's sums stay in registers and cache while it walks down the tokens
  const std::int64_t parts = (dy.cols + kColumns - 1) / kColumns;
  ex.pool.parallel(parts, [&](std::int64_t part, int) {
    const std::int64_t first = part * kColumns, count = std::min(kColumns, dy.cols - first);
    float sums[kColumns] = {};
    for (std::int64_t t = 0; t < dy.rows; ++t)
      for (std::int64_t n = 0; n < count; ++n) sums[n] = std::fma(dy.row(t)[first + n], u.row(t)[first + n], sums[n]);
    for (std::int64_t n = 0; n < count; ++n) dmagnitude[first + n] += sums[n] * inverse[first + n];
  });
}

}  // namespace engine
