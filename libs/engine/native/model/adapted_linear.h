// adapted_linear.h: one projection of a layer, its base weight and the adapters on it, forward and backward (lora.h has the mathematics).
#pragma once

#include <cstdint>

#include "model/gradients.h"
#include "model/pass.h"

namespace engine {

// What the backward of one adapted projection reads. Null where nothing is to be kept.
struct AdapterActivations {
  float* shrunk = nullptr;    // [T, rank]     dropout(x)·Aᵀ
  float* directed = nullptr;  // [T, outputs]  DoRA: dropout(x)·Vᵀ, before the magnitudes
};

// y [T, outputs] = x·Wᵀ + b + the adapters' part; accumulate adds all of that to y. `keep` has memory only in passes of one segment.
void project(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, Rows y, const AdapterActivations& keep, bool accumulate = false);

// Only what the backward reads, without the output.
void project_activations(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, const AdapterActivations& keep);

// The gradient of project: weights' and adapters' parts into `gradients`, dx (+)= the input's.
void project_backward(const Pass& pass, std::int64_t layer, Projection projection, ConstRows x, const AdapterActivations& kept, ConstRows dy, Rows dx,
                      bool accumulate, const Gradients& gradients, InputGradient input = InputGradient::wanted);

}  // namespace engine
