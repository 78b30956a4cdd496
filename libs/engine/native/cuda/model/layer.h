// layer.h: one block of the decoder on a device, forward and backward. The definition is model/forward.cpp and model/backward.cpp.
//   Activations, the residual sum among them, are bf16; norms' statistics, softmax and sums of products are fp32. T tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cancel.h"
#include "cuda/model/activations.h"
#include "cuda/model/beside.h"
#include "cuda/model/device_weights.h"
#include "cuda/model/weight_stage.h"
#include "cuda/ops/attention.h"
#include "cuda/ops/gemm.h"
#include "cuda/ops/view.h"
#include "model/lora.h"

namespace engine::cuda {

// One set of rotations on the device.
struct DeviceRotation {
  const float *cos = nullptr, *sin = nullptr;  // [rows, rotary_dim / 2]
  std::int64_t rotary_dim = 0;
  const std::int32_t* positions = nullptr;     // [T], rows of the table
};

// What the layers of one micro-batch share. Borrows everything.
struct DevicePass {
  const ModelSpec& spec;
  const Geometry& geometry;
  const DeviceWeights& weights;
  WeightStage& stage;
  Gemm& gemm;
  cudaStream_t stream;
  Beside& beside;  // of the backward
  const WorkBuffers& work;
  const LoraAdapter& adapter;  // its layout; values are on the device
  const float* values;         // [adapter.size()]
  const float* inverse_norms;  // [adapter.norm_count()]
  float* gradients;            // [adapter.size()], added to
  std::int64_t tokens = 0;
  AttentionTiles tiles{};
  std::vector<DeviceRotation> rotations;       // one for each of spec.ropes
  float dropout = 0;                           // 0 outside training
  const std::uint64_t* dropout_seed = nullptr;  // on the device
  std::int64_t lowest = 0;    // the layer at which the backward ends
  bool lows_kept = false;     // the layers' `low` hold what this micro-batch's forward computed: in the backward
  bool decode_ahead = false;  // a product's weights of the next layer are decoded once this layer's were used: in the forward

  View<bf16> rows(bf16* data, std::int64_t cols, std::int64_t stride) const { return {data, tokens, cols, stride}; }
  View<bf16> rows(bf16* data, std::int64_t cols) const { return {data, tokens, cols, cols}; }
  View<bf16> low(const LayerBuffers& buffers, Group group) const { return rows(buffers.low[static_cast<std::size_t>(group)], geometry[group].tail); }
};

// The attention half: fills a's buffers up to `middle`, which receives attention's output alone: mlp_forward adds the layer's input.
// x [T, hidden]; `delta` (data may be null) is added to x first, in place.
void attention_forward_half(const DevicePass& pass, std::int64_t layer, View<bf16> x, View<const bf16> delta, const LayerBuffers& a);

// The MLP half. `x` is added to middle first (data null: that has been done). `y` [T, hidden] receives the MLP's output alone: whoever reads it next adds
// middle; with y.data null the last product is left out, unless the backward reads what comes of it.
void mlp_forward_half(const DevicePass& pass, std::int64_t layer, View<const bf16> x, const LayerBuffers& a, View<bf16> y);

enum class InputGradient : std::uint8_t { wanted, unused };

// dx [T, hidden, tail of o and down]: on entry the gradient of the layer's output, on return that of its input x (undefined when unused). Overwrites gate_up.
void layer_backward(const DevicePass& pass, std::int64_t layer, View<const bf16> x, const LayerBuffers& a, View<bf16> dx, InputGradient input);

}  // namespace engine::cuda
