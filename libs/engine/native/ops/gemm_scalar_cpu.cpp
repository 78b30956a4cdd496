#include "ops/gemm_scalar.h"

#include <algorithm>
#include <vector>

#include "core/bf16.h"
#include "ops/decode.h"

namespace engine {
namespace {

float operand(Compute compute, float x) { return compute == Compute::bf16 ? round_to_bf16(x) : x; }

// Rows of a weight as operands of a product.
void decode_operands(Compute compute, const Matrix& w, std::int64_t first, std::int64_t count, float* out) {
  decode_weight(Isa::scalar, w, first, count, out);
  for (std::int64_t i = 0; i < count; ++i) out[i] = operand(compute, out[i]);
}

}  // namespace

void gemm_scalar(const Exec& ex, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Operand a, Operand b, Rows c, bool accumulate) {
  ex.pool.for_ranges(m * n, 4096 / (k + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t row = i / n, col = i % n;
      double sum = 0;
      for (std::int64_t at = 0; at < k; ++at)
        sum += double{operand(ex.compute, a.data[row * a.row_stride + at * a.col_stride])} *
               operand(ex.compute, b.data[col * b.row_stride + at * b.col_stride]);
      float& out = c.row(row)[col];
      const auto value = static_cast<float>(double{alpha} * sum);
      out = accumulate ? out + value : value;
    }
  });
}

void linear_scalar(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate) {
  ex.pool.for_ranges(w.rows, 4096 / (w.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> row(static_cast<std::size_t>(w.cols));
    for (std::int64_t n = first; n < last; ++n) {
      decode_operands(ex.compute, w, n * w.cols, w.cols, row.data());
      for (std::int64_t t = 0; t < x.rows; ++t) {
        double sum = bias != nullptr ? double{bias[n]} : 0.0;
        for (std::int64_t k = 0; k < w.cols; ++k) sum += double{operand(ex.compute, x.row(t)[k])} * row[static_cast<std::size_t>(k)];
        float& out = y.row(t)[n];
        out = accumulate ? out + static_cast<float>(sum) : static_cast<float>(sum);
      }
    }
  });
}

void linear_backward_input_scalar(const Exec& ex, ConstRows dy, const Matrix& w, Rows dx, bool accumulate) {
  constexpr std::int64_t kColumns = 64;
  ex.pool.parallel((w.cols + kColumns - 1) / kColumns, [&](std::int64_t part, int) {
    const std::int64_t begin = part * kColumns, width = std::min(kColumns, w.cols - begin);
    std::vector<double> sums(static_cast<std::size_t>(dy.rows * width));
    float row[kColumns];
    for (std::int64_t n = 0; n < w.rows; ++n) {
      decode_operands(ex.compute, w, n * w.cols + begin, width, row);
      for (std::int64_t t = 0; t < dy.rows; ++t) {
        const double d = operand(ex.compute, dy.row(t)[n]);
        for (std::int64_t c = 0; c < width; ++c) sums[static_cast<std::size_t>(t * width + c)] += d * row[c];
      }
    }
    for (std::int64_t t = 0; t < dy.rows; ++t)
      for (std::int64_t c = 0; c < width; ++c) {
        float& out = dx.row(t)[begin + c];
        const auto value = static_cast<float>(sums[static_cast<std::size_t>(t * width + c)]);
        out = accumulate ? out + value : value;
      }
  });
}

}  // namespace engine
