// glu_simd.h: the row kernels of glu_rows.h in vectors of fp32 lanes.
#pragma once

#include "ops/glu_rows.h"
#include "ops/simd.h"

namespace engine {
namespace {

struct Activated {
  Vec value, derivative;
};

inline Activated silu(Vec x) {
  const Vec s = sigmoid(x), one = broadcast(1.0f);
  return {x * s, s * fma(x, one - s, one)};
}

inline Activated gelu_tanh(Vec x) {
  const Vec half = broadcast(0.5f), one = broadcast(1.0f), k = broadcast(0.7978845608028654f), cubic = broadcast(0.044715f);
  const Vec c = min(broadcast(10.0f), max(broadcast(-10.0f), x)), square = c * c;
  const Vec t = tanh(k * fma(cubic * square, c, c));
  const Vec inner = k * fma(broadcast(3.0f) * cubic, square, one);
  const Vec half_one_plus = half * (one + t);
  return {x * half_one_plus, fma(half * c * negated_fma(t, t, one), inner, half_one_plus)};
}

template <Activated (*activate)(Vec)>
void forward_values(const float* gate, const float* up, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += kLanes) store_up_to(out, activate(load_up_to(gate, i, n)).value * load_up_to(up, i, n), i, n);
}

template <Activated (*activate)(Vec)>
void backward_values(const float* gate, const float* up, const float* dout, std::int64_t n, float* dgate, float* dup) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Activated a = activate(load_up_to(gate, i, n));
    const Vec d = load_up_to(dout, i, n), u = load_up_to(up, i, n);
    store_up_to(dgate, d * u * a.derivative, i, n);
    store_up_to(dup, d * a.value, i, n);
  }
}

void glu_forward_row(Activation act, const float* gate, const float* up, std::int64_t n, float* out) {
  if (act == Activation::silu)
    forward_values<silu>(gate, up, n, out);
  else
    forward_values<gelu_tanh>(gate, up, n, out);
}

void glu_backward_row(Activation act, const float* gate, const float* up, const float* dout, std::int64_t n, float* dgate, float* dup) {
  if (act == Activation::silu)
    backward_values<silu>(gate, up, dout, n, dgate, dup);
  else
    backward_values<gelu_tanh>(gate, up, dout, n, dgate, dup);
}

}  // namespace
}  // namespace engine
