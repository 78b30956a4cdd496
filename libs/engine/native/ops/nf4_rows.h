// nf4_rows.h: inner loops of nf4.h and decode.h for one block of 64 values.
#pragma once

#include <cstdint>

namespace engine {

struct Nf4Rows {
  // w [n ≤ 64] → codes [n], one per byte. Returns the block's absmax, or NaN when a value is not finite.
  float (*quantize_block)(const float* w, std::int64_t n, std::uint8_t* codes);
  // packed [32] → out [64], one fp32 product each.
  void (*decode_block)(const std::uint8_t* packed, float scale, float* out);
};

extern const Nf4Rows nf4_rows_scalar, nf4_rows_avx2, nf4_rows_avx512;

}  // namespace engine
