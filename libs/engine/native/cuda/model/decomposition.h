// decomposition.h: what of a DoRA adapter on the device follows from its other values (ops/dora.h). Nothing is done for other adapters.
#pragma once

#include "cuda/model/device_weights.h"
#include "cuda/model/geometry.h"
#include "cuda/runtime/stream.h"
#include "model/lora.h"

namespace engine::cuda {

// 1 / ‖V‖ of every adapted projection into inverse_norms [adapter.norm_count()], from the adapter's fp32 values: whenever those have changed. A base of 16 or
// 32 bits is taken as it is computed with, in bf16.
void follow_norms(const Geometry& geometry, const DeviceWeights& weights, const LoraAdapter& adapter, const float* values, float* inverse_norms, cudaStream_t stream);

// The magnitudes that a fresh adapter begins with, from those norms.
void begin_magnitudes(const Geometry& geometry, const LoraAdapter& adapter, float* values, const float* inverse_norms, cudaStream_t stream);

}  // namespace engine::cuda
