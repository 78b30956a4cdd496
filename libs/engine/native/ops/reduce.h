// reduce.h: sums over many values, the same bits at every thread count.
#pragma once

#include <cstdint>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// Σ x², in fp64 over fixed pieces of 4096 values added in order. Not finite when any x is not (or when a square overflows fp64: never).
double sum_of_squares(const Exec& ex, const float* x, std::int64_t n);

// db[c] += Σ_r dy[r,c], rows in order: the gradient of a bias.
void bias_gradient(const Exec& ex, ConstRows dy, float* db);

// out[r] = column of the largest logit of row r; the first of equals. NaNs lose; a row of nothing else gives 0. cols ≥ 1.
void argmax_rows(const Exec& ex, ConstRows x, std::int32_t* out);

}  // namespace engine
