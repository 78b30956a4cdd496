// linear_vector.h: linear for up to kVectorRows rows: every weight is read once, in the order of memory, at its bandwidth.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// linear.h's linear, 1 <= x.rows <= kVectorRows. Needs vector instructions.
void linear_vector(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate);

// Dot products of one weight row with `count` rows of x, 1 to 4, each summed in lanes of the same pattern whatever the count.
struct LinearVectorRows {
  // For the packed types x is rearranged: in every 32 values the even ones first, then the odd ones, padded with zeros to whole 64s.
  void (*rearrange)(const float* x, std::int64_t n, bool round, float* out);
  void (*nf4)(const float* x, std::int64_t stride, int count, const std::uint8_t* packed, const float* scales, std::int64_t blocks, bool round, float* out);
  void (*bf16)(const float* x, std::int64_t stride, int count, const void* w, std::int64_t n, float* out);
  // fp32 weights and x as they are; n of each.
  void (*f32)(const float* x, std::int64_t stride, int count, const float* w, std::int64_t n, bool round, float* out);
  // Scales of blocks [first, first + count) of a double-quantized tensor.
  void (*scales)(const Nf4Scales& nf4, std::int64_t first, std::int64_t count, float* out);
};

extern const LinearVectorRows linear_vector_rows_avx2, linear_vector_rows_avx512;

}  // namespace engine
