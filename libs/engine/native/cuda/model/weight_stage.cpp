#include "cuda/model/weight_stage.h"

#include "cuda/ops/lora.h"
#include "cuda/ops/nf4.h"

namespace engine::cuda {

WeightStage::WeightStage(const ModelSpec& spec, const Geometry& geometry, const DeviceWeights& weights, const LoraAdapter& adapter, const float* master,
                         const StageMemory& memory, const Stream& stream)
    : geometry_(geometry), weights_(weights), adapter_(adapter), master_(master), memory_(memory), stream_(stream),
      homes_(static_cast<std::size_t>(spec.layers)) {}

bf16* WeightStage::home(std::int64_t layer, Group group) const noexcept {
  const auto l = static_cast<std::size_t>(layer), g = static_cast<std::size_t>(group);
  if (weights_.layers[l].stored[g] != nullptr) return weights_.layers[l].stored[g];
  return l < memory_.decoded.size() ? memory_.decoded[l].matrix[g] : nullptr;
}

View<bf16> WeightStage::matrix(bf16* data, Group group) const noexcept {
  const GroupShape& shape = geometry_[group];
  return {data, shape.rows(), shape.stride(), shape.stride()};
}

void WeightStage::decode(std::int64_t layer, Group group, View<bf16> to, cudaStream_t stream) const {
  const GroupShape& shape = geometry_[group];
  for (const GroupPart& part : shape.parts)
    nf4_dequantize(weights_.layers[static_cast<std::size_t>(layer)].nf4[static_cast<std::size_t>(part.projection)],
                   to.row_range(part.first_output, part.outputs).columns(0, shape.inputs), stream);
}

void WeightStage::pack(std::int64_t layer, Group group, View<bf16> to, cudaStream_t stream) const {
  if (!geometry_.adapts(layer, group)) return;
  const GroupShape& shape = geometry_[group];
  std::vector<LoraPart> parts;
  for (const GroupPart& part : shape.parts)
    if (const LoraPair* at = adapter_.pair(layer, part.projection))
      parts.push_back({master_ + at->a, master_ + at->b, at->rank, at->scale, part.first_output, part.outputs, part.first_slot});
  lora_pack(parts, to, shape.tail, stream);
}

void WeightStage::fill(Slot& slot, std::int64_t layer, Group group) {
  slot.free.record(stream_);  // everything given so far, the last readers of this scratch among it
  slot.free.wait(decoding_);
  const View<bf16> to = matrix(memory_.scratch[static_cast<std::size_t>(group)], group);
  decode(layer, group, to, decoding_);
  pack(layer, group, to, decoding_);
  slot.ready.record(decoding_);
  slot.layer = layer;
  slot.group = static_cast<int>(group);
  slot.version = version_;
  slot.waiting = true;
}

View<bf16> WeightStage::use(std::int64_t layer, Group group) {
  const auto l = static_cast<std::size_t>(layer), g = static_cast<std::size_t>(group);
  if (bf16* own = home(layer, group)) {
    Home& state = homes_[l][g];
    const View<bf16> to = matrix(own, group);
    if (!state.decoded && weights_.layers[l].stored[g] == nullptr) decode(layer, group, to, stream_);
    if (state.version != version_) pack(layer, group, to, stream_);
    state = {true, version_};
    return to;
  }
  Slot& slot = slots_[memory_.single() ? 0 : g];
  if (slot.layer != layer || slot.group != static_cast<int>(group) || slot.version != version_) fill(slot, layer, group);
  if (slot.waiting) slot.ready.wait(stream_);
  slot.waiting = false;
  return matrix(memory_.scratch[g], group);
}

void WeightStage::prefetch(std::int64_t layer, Group group) {
  if (memory_.single() || layer < 0 || layer >= static_cast<std::int64_t>(homes_.size()) || home(layer, group) != nullptr) return;
  Slot& slot = slots_[static_cast<std::size_t>(group)];
  if (slot.layer == layer && slot.version == version_) return;
  fill(slot, layer, group);
}

}  // namespace engine::cuda
