// gradients.h: where a backward pass adds what it finds.
#pragma once

#include <cstdint>

#include "model/lora.h"
#include "model/weights.h"

namespace engine {

// Either the adapter of the pass (its one segment) or all parameters, never both.
struct Gradients {
  float* lora = nullptr;              // [adapter.size()], laid out as the adapter
  const float* parameters = nullptr;  // the flat fp32 array that the pass's weights view (train/full_parameters.h) …
  float* full = nullptr;              // … and gradients of the same layout
  float* embedding = nullptr;         // [vocab, hidden] of the token table, part of either; null where it is frozen
  float* head = nullptr;              // [vocab, hidden] of the head; the same as `embedding` when all parameters are trained and they are tied

  // The gradient of a parameter, given the pointer under which the pass's weights hold it.
  float* of(const void* parameter) const noexcept { return full + (static_cast<const float*>(parameter) - parameters); }

  static Gradients of_adapter(const LoraAdapter& adapter, float* gradients) {
    Gradients result;
    result.lora = gradients;
    if (adapter.embedding_offset() >= 0) result.embedding = gradients + adapter.embedding_offset();
    if (adapter.head_offset() >= 0) result.head = gradients + adapter.head_offset();
    return result;
  }
  static Gradients of_parameters(const DecoderWeights& weights, const float* parameters, float* gradients) {
    Gradients result;
    result.parameters = parameters;
    result.full = gradients;
    result.embedding = result.of(weights.embedding.data);
    result.head = result.of(weights.head.data);
    return result;
  }
};

enum class InputGradient : std::uint8_t { wanted, unused };

}  // namespace engine
