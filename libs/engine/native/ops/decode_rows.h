// decode_rows.h: conversions of a run of values.
#pragma once

#include <cstdint>

namespace engine {

struct DecodeRows {
  void (*widen_bf16)(const void* src, std::int64_t n, float* out);  // src at any address
  void (*widen_f16)(const void* src, std::int64_t n, float* out);
  void (*round_bf16)(const float* x, std::int64_t n, float* out);  // to the nearest bf16, kept as fp32; out may be x
};

extern const DecodeRows decode_rows_scalar, decode_rows_avx2, decode_rows_avx512;

}  // namespace engine
