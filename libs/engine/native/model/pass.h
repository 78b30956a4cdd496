// pass.h: what the forward and the backward of one batch share.
#pragma once

#include <cstdint>
#include <span>

#include "core/cancel.h"
#include "core/exec.h"
#include "core/rng.h"
#include "model/arena.h"
#include "model/lora.h"
#include "model/rope_cache.h"
#include "model/spec.h"
#include "model/weights.h"

namespace engine {

// Sequences laid end to end: tokens offsets[i] … offsets[i + 1] − 1 are sequence i, whose positions start at 0.
struct PackedTokens {
  std::span<const std::uint32_t> ids;          // [T]
  std::span<const std::int64_t> offsets;       // [sequences + 1]
};

// Consecutive tokens that one adapter (or none) acts on. The segments of a pass cover all its tokens in order.
struct LoraSegment {
  std::int64_t first = 0, count = 0;
  const LoraAdapter* adapter = nullptr;
};

// Borrows everything; lives for one batch.
struct Pass {
  const Exec& ex;
  const ModelSpec& spec;
  const DecoderWeights& weights;
  RopeCache& ropes;
  Arena& arena;
  std::span<const LoraSegment> adapters;
  float dropout = 0;              // of LoRA inputs; 0 outside training
  std::uint64_t dropout_key = 0;  // differs from micro-batch to micro-batch
  const CancelFlag* cancel = nullptr;

  const LayerWeights& layer(std::int64_t index) const { return weights.layers[static_cast<std::size_t>(index)]; }
  const LayerSpec& layer_spec(std::int64_t index) const { return spec.layer[static_cast<std::size_t>(index)]; }
  // The mask of one projection's adapter; the backward asks again and gets the same.
  Philox dropout_stream(std::int64_t layer_index, Projection projection) const {
    return {dropout_key, static_cast<std::uint64_t>(layer_index * kProjections + static_cast<int>(projection))};
  }
};

}  // namespace engine
