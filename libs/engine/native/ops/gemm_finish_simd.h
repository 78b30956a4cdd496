// gemm_finish_simd.h: how a tile's sums reach the result, the same for every kernel.
#pragma once

#include "ops/simd.h"

namespace engine {
namespace {

// c[0 … count) ← alpha · product (+ c) (+ bias); at most one vector, nothing when count <= 0.
inline void finish(Vec product, float* c, std::int64_t count, Vec alpha, const float* bias, bool accumulate) {
  Vec value = alpha * product;
  if (count >= kLanes) {
    if (accumulate) value = value + load(c);
    if (bias != nullptr) value = value + load(bias);
    store(c, value);
  } else if (count > 0) {
    if (accumulate) value = value + load_first(c, count);
    if (bias != nullptr) value = value + load_first(bias, count);
    store_first(c, value, count);
  }
}

}  // namespace
}  // namespace engine
