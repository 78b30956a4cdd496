// elementwise.h: maps over activations. In place is allowed wherever input and output have the same shape.
#pragma once

#include <cstdint>

#include "core/exec.h"
#include "core/rng.h"
#include "ops/matrix.h"

namespace engine {

// y += alpha · x, one fused multiply-add each.
void add_scaled(const Exec& ex, ConstRows x, float alpha, Rows y);

// y[r] += bias
void bias_add(const Exec& ex, const float* bias, Rows y);

// y = alpha · x
void scale(const Exec& ex, ConstRows x, float alpha, Rows y);

// y = x · mask / (1 - p), p in [0, 1): element i of the flattened [rows, cols] is kept when word i of the stream is at or above
// p · 2^32. The same call on a gradient is the backward: nothing is stored. The mask depends on neither threads nor instructions.
void dropout(const Exec& ex, Philox stream, float p, ConstRows x, Rows y);

}  // namespace engine
