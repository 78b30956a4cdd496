// attention_decode_rows.h: inner loops of attention_decode.h over a run of cached tokens of one head.
//   keys and values are `count` consecutive vectors of d elements.
#pragma once

#include <cstdint>

namespace engine {

struct AttentionDecodeRows {
  void (*scores)(const float* q, const float* keys, std::int64_t count, std::int64_t d, float scale, float* s);  // s = scale · q·k
  void (*softcap)(float* s, std::int64_t n, float softcap);
  // p = exp(s - max s), in place; returns Σ p.
  float (*softmax)(float* s, std::int64_t n);
  void (*add_values)(const float* p, const float* values, std::int64_t count, std::int64_t d, float* out);  // out += Σ p · v
};

extern const AttentionDecodeRows attention_decode_rows_scalar, attention_decode_rows_avx2, attention_decode_rows_avx512;

}  // namespace engine
