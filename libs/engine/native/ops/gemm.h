// gemm.h: products of two fp32 matrices, for LoRA and weight gradients.
//   Compute::bf16 rounds both operands to bf16 (nearest even) and sums in fp32; Compute::f32 rounds nothing.
//   accumulate: c += …; otherwise c is overwritten and its old contents are never read (they may be NaN).
//   Split over outputs, never over the sum: the same bits at every thread count. c must not overlap a or b.
//   An empty sum (T = 0 or K = 0) gives 0. Throws invalid when shapes disagree.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// c[M,N] (+)= alpha · a[T,M]ᵀ · b[T,N]       weight gradients: dW = dyᵀ·x
void gemm_tn(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha = 1.0f, bool accumulate = false);

// c[M,N] (+)= alpha · a[M,K] · b[N,K]ᵀ       LoRA shrink: x·Aᵀ; LoRA expand: h·Bᵀ
void gemm_nt(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha = 1.0f, bool accumulate = false);

// c[M,N] (+)= alpha · a[M,K] · b[K,N]        their gradients: dy·B, dh·A
void gemm_nn(const Exec& ex, ConstRows a, ConstRows b, Rows c, float alpha = 1.0f, bool accumulate = false);

}  // namespace engine
