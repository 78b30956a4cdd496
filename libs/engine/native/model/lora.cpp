#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <unordered_map>

#include "core/error.h"
#include "core/rng.h"
#include "ops/dora.h"
#include "ops/linear.h"

namespace engine {
namespace {

bool contains(const std::vector<std::string>& names, std::string_view name) { return std::ranges::find(names, name) != names.end(); }

using PairsByModule = std::unordered_map<std::string_view, const AdapterPair*>;
PairsByModule pairs_by_module(const PeftAdapter& stored) {
  PairsByModule pairs;
  for (const AdapterPair& pair : stored.pairs()) pairs.emplace(pair.module, &pair);
  return pairs;
}

}  // namespace

LoraAdapter::LoraAdapter(const ModelSpec& model, const LoraConfig& config) : LoraAdapter(model, config, nullptr, Values::zeros) {}

// `stored` tells which projections are adapted where its targets are no plain names.
LoraAdapter::LoraAdapter(const ModelSpec& model, const LoraConfig& config, const PeftAdapter* stored, Values values)
    : config_(config), layers_(model.layers), vocab_(model.vocab), hidden_(model.hidden), bound_(!config.dora) {
  check_lora_config(config_);
  require(config_.layers.empty() || config_.layers.back() < layers_, "layer ", config_.layers.empty() ? 0 : config_.layers.back(),
          " is to be adapted, but the model has layers 0 to ", layers_ - 1);
  const bool by_tensor = stored != nullptr && !stored->targets_are_names();
  const PairsByModule tensors = by_tensor ? pairs_by_module(*stored) : PairsByModule{};
  const auto adapts = [&](std::int64_t layer, Projection projection) {
    if (by_tensor) return tensors.contains(module(layer, static_cast<int>(projection)));
    return contains(config_.target_modules, projection_name(projection)) && (config_.layers.empty() || std::ranges::binary_search(config_.layers, layer));
  };
  pairs_.resize(static_cast<std::size_t>(layers_ * kProjections));
  std::int64_t offset = 0, norms = 0;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p) {
      const auto projection = static_cast<Projection>(p);
      if (!adapts(layer, projection)) continue;
      LoraPair& pair = at(layer, p);
      pair.inputs = model.columns(projection);
      pair.outputs = model.rows(projection);
      pair.rank = config_.rank_of(module(layer, p));
      pair.scale = static_cast<float>(config_.scale_of(module(layer, p)));
      pair.a = offset;
      pair.b = pair.a + pair.rank * pair.inputs;
      offset = pair.b + pair.rank * pair.outputs;
      if (!config_.dora) continue;
      pair.magnitude = offset;
      offset += pair.outputs;
      pair.norm = norms;
      norms += pair.outputs;
    }
  const auto place = [&](std::string_view name) -> std::int64_t {
    if (!contains(config_.modules_to_save, name)) return -1;
    offset += vocab_ * hidden_;
    return offset - vocab_ * hidden_;
  };
  embedding_ = place(kEmbeddingModule);
  head_ = place(kHeadModule);
  size_ = offset;
  norms_ = norms;
  if (values == Values::none) return;
  values_.assign(static_cast<std::size_t>(size_), 0.0f);
  inverse_norms_.assign(static_cast<std::size_t>(norms_), 0.0f);
}

LoraAdapter LoraAdapter::read(const ModelSpec& model, const std::filesystem::path& dir) {
  const PeftAdapter stored(dir);
  require(Code::corrupt, stored.config().layers.empty() || stored.config().layers.back() < model.layers, "the adapter is for layer ",
          stored.config().layers.empty() ? 0 : stored.config().layers.back(), ", but this base has layers 0 to ", model.layers - 1);
  LoraAdapter adapter(model, stored.config(), &stored, Values::zeros);
  PairsByModule unread = pairs_by_module(stored);
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
      copy(*found->second->a, {at->rank, at->inputs}, at->a);
      copy(*found->second->b, {at->outputs, at->rank}, at->b);
      if (adapter.config_.dora) copy(*found->second->magnitude, {at->outputs}, at->magnitude);
      unread.erase(found);
    }
  for (const AdapterPair& pair : stored.pairs())
    require(Code::unsupported, !unread.contains(pair.module), "the adapter has matrices for ", pair.module, ", which this base does not have");
  if (adapter.embedding_ >= 0) copy(*stored.embedding(), {model.vocab, model.hidden}, adapter.embedding_);
  if (adapter.head_ >= 0) copy(*stored.head(), {model.vocab, model.hidden}, adapter.head_);
  return adapter;
}

void LoraAdapter::write(const std::filesystem::path& dir, const std::string& base_model_name) const {
  std::vector<AdapterMatrices> matrices;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p)
      if (const LoraPair* at = pair(layer, static_cast<Projection>(p)))
        matrices.push_back({module(layer, p), at->inputs, at->outputs, data() + at->a, data() + at->b, data() + at->magnitude});
  std::vector<SavedMatrix> whole;
  if (embedding_ >= 0) whole.push_back({std::string(kEmbeddingPath), vocab_, hidden_, data() + embedding_});
  if (head_ >= 0) whole.push_back({std::string(kHeadPath), vocab_, hidden_, data() + head_});
  LoraConfig config = config_;
  config.base_model_name = base_model_name;
  write_peft_adapter(dir, config, matrices, whole);
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

std::int64_t LoraAdapter::widest_rank(Projection projection) const noexcept {
  std::int64_t widest = 0;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    if (const LoraPair* at = pair(layer, projection)) widest = std::max(widest, at->rank);
  return widest;
}

std::int64_t LoraAdapter::first_layer() const noexcept {
  const auto found = std::ranges::find_if(pairs_, [](const LoraPair& pair) { return pair.inputs != 0; });
  return (found - pairs_.begin()) / kProjections;
}

std::optional<Matrix> LoraAdapter::saved(std::int64_t offset) const noexcept {
  if (offset < 0) return std::nullopt;
  return Matrix{Dtype::f32, vocab_, hidden_, data() + offset, {}};
}

bool LoraAdapter::fits(const ModelSpec& model) const noexcept {
  if (model.layers != layers_) return false;
  if ((embedding_ >= 0 || head_ >= 0) && (model.vocab != vocab_ || model.hidden != hidden_)) return false;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p) {
      const auto projection = static_cast<Projection>(p);
      const LoraPair* at = pair(layer, projection);
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
    for (std::int64_t j = 0; j < at.rank * at.inputs; ++j)
      values_[static_cast<std::size_t>(at.a + j)] = bound * (2.0f * random.uniform(static_cast<std::uint64_t>(j)) - 1.0f);
  }
}

void LoraAdapter::copy_whole_modules(const DecoderWeights& base) {
  if (embedding_ >= 0) dequantize_rows(base.embedding, 0, vocab_, data() + embedding_);
  if (head_ >= 0) dequantize_rows(base.head, 0, vocab_, data() + head_);
}

void LoraAdapter::start_from(const Exec& ex, const DecoderWeights& base, Arena& arena) {
  copy_whole_modules(base);
  bind(ex, base, arena);
  if (!config_.dora) return;
  for (const LoraPair& pair : pairs_)
    for (std::int64_t i = 0; i < pair.outputs; ++i) {
      const float inverse = inverse_norms_[static_cast<std::size_t>(pair.norm + i)];
      values_[static_cast<std::size_t>(pair.magnitude + i)] = inverse > 0 ? 1.0f / inverse : 0.0f;
    }
}

void LoraAdapter::bind(const Exec& ex, const DecoderWeights& base, Arena& arena) {
  if (!config_.dora) return;
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int p = 0; p < kProjections; ++p) {
      const LoraPair* pair = this->pair(layer, static_cast<Projection>(p));
      if (pair == nullptr) continue;
      const Arena::Scope scope(arena);
      const Matrix& weight = base.layers[static_cast<std::size_t>(layer)][static_cast<Projection>(p)].weight;
      dora_inverse_norms(ex, weight, ConstRows(data() + pair->a, pair->rank, pair->inputs), ConstRows(data() + pair->b, pair->outputs, pair->rank), pair->scale,
                         arena.rows(dora_chunk_rows(weight), weight.cols), inverse_norms_.data() + pair->norm);
    }
  bound_ = true;
}

std::string LoraAdapter::module(std::int64_t layer, int projection) {
  return text("model.layers.", layer, ".", projection_path(static_cast<Projection>(projection)));
}

}  // namespace engine
