// glu.h: the gated activation of the MLP on the fused product.   gate_up [T, 2F] = [gate | up];   out = act(gate) · up
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/glu.h"

namespace engine::cuda {

// out [T, F], not overlapping gate_up. F is a multiple of 8. Computed in fp32, rounded once. Asynchronous on `stream`.
void glu_forward(Activation act, View<const bf16> gate_up, View<bf16> out, cudaStream_t stream);

// gate_up ← [dout · up · act'(gate) | dout · act(gate)], in place. `out`, when its data is not null, receives act(gate) · up again (the bits of the
// forward), so that it need not be kept; it may be dout.
void glu_backward(Activation act, View<const bf16> dout, View<bf16> gate_up, View<bf16> out, cudaStream_t stream);

}  // namespace engine::cuda
