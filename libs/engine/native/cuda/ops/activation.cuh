// activation.cuh: the activations of gated products in kernels that take either.
#pragma once

#include "cuda/runtime/ptx.h"

namespace engine::cuda {

// silu, or gelu in its tanh form: x/2 (1 + tanh u) = x σ(2u). The bits of glu.cu's, which gives a row without an adapter its result where no row has one.
ENGINE_DEVICE float activate(float x, bool gelu) {
  if (!gelu) return x * (1.0f / (1.0f + exp_fast(-x)));
  constexpr float kRoot = 0.7978845608028654f, kCubic = 0.044715f;
  return x * (1.0f / (1.0f + exp_fast(-2.0f * (kRoot * (x + kCubic * x * x * x)))));
}

}  // namespace engine::cuda
