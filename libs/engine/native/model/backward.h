// backward.h: gradients of the decoder, layer by layer, written out by hand.
#pragma once

#include <cstdint>

#include "model/forward.h"

namespace engine {

// Where gradients are added to. Either the adapter of the pass (its one segment) or all parameters, never both.
struct Gradients {
  float* lora = nullptr;             // [adapter.size()], laid out as the adapter
  const float* parameters = nullptr;  // the flat fp32 array that the pass's weights view (train/full_parameters.h) …
  float* full = nullptr;             // … and gradients of the same layout

  // The gradient of a parameter, given the pointer under which the pass's weights hold it.
  float* of(const void* parameter) const noexcept { return full + (static_cast<const float*>(parameter) - parameters); }
};

enum class InputGradient : std::uint8_t { wanted, unused };

// dx [T, hidden]: on entry the gradient of layer(x), on return that of x (undefined when unused). `a` holds what layer_forward kept; its gate,
// up, q, k and v are overwritten.
void layer_backward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, std::span<const std::int64_t> offsets, Rows dx,
                    const Gradients& gradients, InputGradient input);

}  // namespace engine
