// glu.h: the gated activation of the MLP.   out = act(gate) · up
//   silu(x) = x · σ(x)      gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

enum class Activation : std::uint8_t { silu, gelu_tanh };

// gate, up, out [T,F]; out may be gate or up.
void glu_forward(const Exec& ex, Activation act, ConstRows gate, ConstRows up, Rows out);

// dgate = dout · up · act'(gate)      dup = dout · act(gate)      dgate may be gate or dout, dup may be up or dout (not both dout).
void glu_backward(const Exec& ex, Activation act, ConstRows gate, ConstRows up, ConstRows dout, Rows dgate, Rows dup);

}  // namespace engine
