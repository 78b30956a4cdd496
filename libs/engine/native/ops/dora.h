// dora.h: weight-decomposed low-rank adaptation (Liu et al., 2024).   T tokens, K inputs, N outputs, rank r.
//   V = W + s·B·A    W'[n] = c[n]·V[n]    c[n] = m[n] / ‖V[n]‖₂    m the trained magnitudes
//   As in PEFT the norm is a constant of the backward pass. A row of zeros has no direction: its c is 0, so that it stays zero.
#pragma once

#include <cstdint>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// Rows of V that dora_inverse_norms works on at a time, for weights of K inputs.
std::int64_t dora_chunk_rows(const Matrix& w);

// inverse[n] = 1 / ‖w[n] + scale · b[n]·a‖₂, 0 for a row of zeros.   w [N,K], a [r,K], b [N,r], all as stored: nothing is rounded to bf16.
// Squares are summed in fp64. scratch [dora_chunk_rows(w), K].
void dora_inverse_norms(const Exec& ex, const Matrix& w, ConstRows a, ConstRows b, float scale, Rows scratch, float* inverse);

// One factor for each column. Null vectors stand for ones; their product is c, or 1.
struct DoraFactor {
  const float* magnitude = nullptr;  // m [N]
  const float* inverse = nullptr;    // 1 / ‖V[n]‖, [N]
};

// y[t,n] = c[n]·x[t,n] + bias[n]      (accumulate: y += …)      bias [N] or null. In place when x and y are the same and not accumulated.
void dora_scale(const Exec& ex, ConstRows x, DoraFactor factor, const float* bias, Rows y, bool accumulate = false);

// dm[n] += Σ_t dy[t,n]·u[t,n] / ‖V[n]‖, tokens in order: the gradient of the magnitudes, where y = c ⊙ u.
void dora_magnitude_backward(const Exec& ex, ConstRows dy, ConstRows u, const float* inverse, float* dmagnitude);

}  // namespace engine
