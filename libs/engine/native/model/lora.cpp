#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <unordered_map>

#include "core/error.h"
#include "core/rng.h"

namespace engine {

LoraAdapter::LoraAdapter(const ModelSpec& model, const LoraConfig& config) : config_(config), layers_(model.layers) {
  check_lora_config(config_);
  scale_ = static_cast<float>(config_.scale());
  pairs_.resize(static_cast<std::size_t>(layers_ * kProjections));
  std::int64_t offset = 0;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p) {
      const auto projection = static_cast<Projection>(p);
      if (std::ranges::find(config_.target_modules, projection_name(projection)) == config_.target_modules.end()) continue;
      LoraPair& at = pairs_[static_cast<std::size_t>(layer * kProjections + p)];
      at.inputs = model.columns(projection);
      at.outputs = model.rows(projection);
      at.a = offset;
      at.b = at.a + config_.rank * at.inputs;
      offset = at.b + config_.rank * at.outputs;
    }
  values_.assign(static_cast<std::size_t>(offset), 0.0f);
}

LoraAdapter LoraAdapter::read(const ModelSpec& model, const std::filesystem::path& dir) {
  const PeftAdapter stored(dir);
  LoraAdapter adapter(model, stored.config());
  std::unordered_map<std::string_view, const AdapterPair*> unread;
  for (const AdapterPair& pair : stored.pairs()) unread.emplace(pair.module, &pair);
  const auto copy = [&](const TensorView& tensor, const std::vector<std::int64_t>& shape, std::int64_t offset) {
    require(Code::corrupt, tensor.shape == shape, "the adapter's ", tensor.name, " is ", shape_text(tensor.shape), ", but this base and the rank need ",
            shape_text(shape));
    to_f32(tensor.dtype, tensor.data, tensor.elements(), adapter.data() + offset);
  };
  for (std::int64_t layer = 0; layer < adapter.layers_; ++layer)
    for (int p = 0; p < kProjections; ++p) {
      const LoraPair* at = adapter.pair(layer, static_cast<Projection>(p));
      if (at == nullptr) continue;
      const auto found = unread.find(module(layer, p));
      require(Code::corrupt, found != unread.end(), "the adapter has no matrices for ", module(layer, p), ", which its targets call for on this base");
      copy(*found->second->a, {adapter.config_.rank, at->inputs}, at->a);
      copy(*found->second->b, {at->outputs, adapter.config_.rank}, at->b);
      unread.erase(found);
    }
  for (const AdapterPair& pair : stored.pairs())
    require(Code::unsupported, !unread.contains(pair.module), "the adapter has matrices for ", pair.module, ", which this base does not have");
  return adapter;
}

void LoraAdapter::write(const std::filesystem::path& dir, const std::string& base_model_name) const {
  std::vector<AdapterMatrices> matrices;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p)
      if (const LoraPair* at = pair(layer, static_cast<Projection>(p)))
        matrices.push_back({module(layer, p), at->inputs, at->outputs, data() + at->a, data() + at->b});
  LoraConfig config = config_;
  config.base_model_name = base_model_name;
  write_peft_adapter(dir, config, matrices);
}

void LoraAdapter::write_tensors(const std::filesystem::path& file, const float* values) const {
  std::vector<NamedTensor> tensors;
  for_each_tensor([&](const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t offset) {
    tensors.push_back({{name, Dtype::f32, shape}, values + offset});
  });
  write_safetensors(file, tensors, {{"format", "pt"}});
}

const LoraPair* LoraAdapter::pair(std::int64_t layer, Projection projection) const noexcept {
  const LoraPair& at = pairs_[static_cast<std::size_t>(layer * kProjections + static_cast<int>(projection))];
  return at.inputs == 0 ? nullptr : &at;
}

bool LoraAdapter::fits(const ModelSpec& model) const noexcept {
  if (model.layers != layers_) return false;
  for (int p = 0; p < kProjections; ++p) {
    const auto projection = static_cast<Projection>(p);
    const LoraPair* at = pair(0, projection);
    if (at != nullptr && (at->inputs != model.columns(projection) || at->outputs != model.rows(projection))) return false;
  }
  return true;
}

void LoraAdapter::initialize(std::uint64_t seed) {
  std::ranges::fill(values_, 0.0f);
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    const LoraPair& at = pairs_[i];
    const Philox random{seed, i};  // one stream for each matrix, so a subset of targets starts as the full set does
    const float bound = at.inputs == 0 ? 0.0f : 1.0f / std::sqrt(static_cast<float>(at.inputs));
    for (std::int64_t j = 0; j < config_.rank * at.inputs; ++j)
      values_[static_cast<std::size_t>(at.a + j)] = bound * (2.0f * random.uniform(static_cast<std::uint64_t>(j)) - 1.0f);
  }
}

std::string LoraAdapter::module(std::int64_t layer, int projection) {
  return text("model.layers.", layer, ".", projection_path(static_cast<Projection>(projection)));
}

}  // namespace engine
