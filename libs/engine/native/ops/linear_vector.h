// linear_vector.h: linear for few rows: every weight is read once, in the order of memory, at its bandwidth. Sums in the order of lane_order.h.
#pragma once

#include "core/exec.h"
#include "ops/lane_order.h"
#include "ops/matrix.h"

namespace engine {

// linear.h's linear for any number of rows, fast for up to about 16. Needs vector instructions.
void linear_vector(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate);

// Products of up to `lanes` weight rows with `count` rows of x, 1 to kVectorCount, over a sweep: sums[t][r][lane], each [lanes] apart.
inline constexpr int kVectorCount = 4;
struct LinearVectorRows {
  std::int64_t lanes;
  // x as the others take it: of every 2·lanes values the even ones first, then the odd ones; zeros up to a whole number of those.
  void (*rearrange)(const float* x, std::int64_t n, bool round, float* out);
  // Rows of NF4 codes row_bytes apart, of blocks of 64 whose scales are scale_stride apart from row to row.
  void (*nf4)(const float* x, std::int64_t stride, int count, const std::uint8_t* packed, std::int64_t row_bytes, const float* scales,
              std::int64_t scale_stride, int rows, std::int64_t blocks, bool round, float* sums);
  void (*bf16)(const float* x, std::int64_t stride, int count, const std::uint8_t* w, std::int64_t row_bytes, int rows, std::int64_t n, float* sums);
  void (*f32)(const float* x, std::int64_t stride, int count, const float* w, std::int64_t row_stride, int rows, std::int64_t n, bool round, float* sums);
  // y[r] ← the lanes of row r's sums one after another (+ y[r]) (+ bias[r]), r < rows.
  void (*finish)(const float* sums, int rows, const float* bias, bool accumulate, float* y);
  // Scales of blocks [first, first + count) of a double-quantized tensor.
  void (*scales)(const Nf4Scales& nf4, std::int64_t first, std::int64_t count, float* out);
};

extern const LinearVectorRows linear_vector_rows_avx2, linear_vector_rows_avx512;

}  // namespace engine
