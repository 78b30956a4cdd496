// rope_simd.h: the row kernel of rope_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/rope_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

void rope_rotate(const float* cos, const float* sin, std::int64_t half, float direction, float* x) {
  const Vec d = broadcast(direction);
  for (std::int64_t i = 0; i < half; i += kLanes) {
    const Vec a = load_up_to(x, i, half), b = load_up_to(x + half, i, half);
    const Vec c = load_up_to(cos, i, half), s = d * load_up_to(sin, i, half);
    store_up_to(x, a * c - b * s, i, half);
    store_up_to(x + half, b * c + a * s, i, half);
  }
}

}  // namespace
}  // namespace engine
