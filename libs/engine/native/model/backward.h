// backward.h: gradients of the decoder, layer by layer, written out by hand.
#pragma once

#include <cstdint>

#include "model/forward.h"
#include "model/gradients.h"

namespace engine {

// dx [T, hidden]: on entry the gradient of layer(x), on return that of x (undefined when unused). `a` holds what layer_forward kept; its gate,
// up, q, k and v are overwritten.
void layer_backward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, std::span<const std::int64_t> offsets, Rows dx,
                    const Gradients& gradients, InputGradient input);

}  // namespace engine
