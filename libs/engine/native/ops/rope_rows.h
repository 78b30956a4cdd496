// rope_rows.h: inner loop of rope.h for one head of one token.
#pragma once

#include <cstdint>

namespace engine {

struct RopeRows {
  // x [2 · half], in place: (a, b) ← (a·cos - direction·b·sin, b·cos + direction·a·sin); direction is 1 or -1.
  void (*rotate)(const float* cos, const float* sin, std::int64_t half, float direction, float* x);
};

extern const RopeRows rope_rows_scalar, rope_rows_avx2, rope_rows_avx512;

}  // namespace engine
