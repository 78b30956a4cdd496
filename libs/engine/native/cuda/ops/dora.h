// dora.h: weight-decomposed low-rank adaptation.   V = W + s·B·A    W'[n] = c[n]·V[n]    c[n] = m[n] / ‖V[n]‖    (ops/dora.h)
//   T tokens, K inputs, N outputs, rank r. Activations bf16; magnitudes, norms, A and B fp32. N and K are multiples of 8. Asynchronous on `stream`.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/matrix.h"

namespace engine::cuda {

// One projection's A [rank, K] and B [N, rank], dense.
struct DoraMatrices {
  const float* a;
  const float* b;
  std::int64_t rank;
  float scale;
};

// inverse[n] = 1 / ‖w[n] + s · b[n]·a‖₂, 0 for a row of zeros. w is NF4 in device memory, its values not rounded to bf16, or bf16. Sums of 8 squares are
// fp32, their sums fp64.
void dora_inverse_norms(const Matrix& nf4, const DoraMatrices& adapter, float* inverse, cudaStream_t stream);
void dora_inverse_norms(View<const bf16> w, const DoraMatrices& adapter, float* inverse, cudaStream_t stream);

// m[n] = ‖V[n]‖: what magnitudes begin with.
void dora_magnitudes(const float* inverse, std::int64_t n, float* magnitude, cudaStream_t stream);

// The outputs of one projection, some of the columns of a product.
struct DoraPart {
  const float* magnitude;  // m [outputs]
  const float* inverse;    // 1 / ‖V‖ [outputs]
  std::int64_t first_output, outputs;
};
inline constexpr std::int64_t kMostDoraParts = 3;

// y[t,n] (+)= c[n]·x[t,n] + bias[n], c = 1 outside the parts. bias [N] may be null. x and y may be the same.
void dora_scale(View<const bf16> x, std::span<const DoraPart> parts, const bf16* bias, View<bf16> y, bool accumulate, cudaStream_t stream);

// dm[n] += Σ_t dy[t,n]·u[t,n] / ‖V[n]‖, in a fixed order: the gradient of the magnitudes, where y = c ⊙ u. `workspace` has dora_workspace bytes.
void dora_magnitude_backward(View<const bf16> dy, View<const bf16> u, const float* inverse, float* dmagnitude, float* workspace, cudaStream_t stream);
std::int64_t dora_workspace(std::int64_t tokens, std::int64_t outputs);

}  // namespace engine::cuda
