#include "export/streamed_decoder.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "model/forward.h"
#include "ops/cross_entropy.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/rmsnorm.h"

namespace engine {
namespace {

constexpr std::int64_t kHeadChunk = std::int64_t{1} << 22;  // weights of the head at a time

// Buffers of the parameters that are in memory, by the place they fill in DecoderWeights.
class LoadedParameters {
 public:
  LoadedParameters(const ModelSpec& spec, const ReadRows& read, DecoderWeights& weights) : spec_(spec), read_(read), weights_(weights) {}

  void load(const ParameterSpec& parameter) {
    const ParameterSlot slot = find_slot(spec_, weights_, parameter.name);
    const bool vector = parameter.shape.size() == 1;
    const std::int64_t rows = vector ? 1 : parameter.shape[0], cols = parameter.shape.back();
    std::vector<float>& values = buffers_.emplace_back(static_cast<std::size_t>(rows * cols));
    read_(parameter, 0, rows, values.data());
    if (slot.vector != nullptr)
      *slot.vector = values.data();
    else
      *slot.matrix = {Dtype::f32, rows, cols, values.data(), {}};
  }
  void drop() { buffers_.clear(); }

 private:
  const ModelSpec& spec_;
  const ReadRows& read_;
  DecoderWeights& weights_;
  std::vector<std::vector<float>> buffers_;  // the heap blocks stay where they are while the list grows
};

// Rows of the token table that `ids` name, as a table of their own, and the ids into it.
struct UsedTokens {
  std::vector<float> table;
  std::vector<std::uint32_t> ids;
};
UsedTokens read_used_tokens(const ParameterSpec& table, const ReadRows& read, std::span<const std::uint32_t> ids, std::int64_t hidden) {
  UsedTokens used;
  std::map<std::uint32_t, std::uint32_t> place;
  for (const std::uint32_t id : ids) {
    const auto [entry, fresh] = place.emplace(id, static_cast<std::uint32_t>(place.size()));
    if (fresh) {
      used.table.resize(place.size() * static_cast<std::size_t>(hidden));
      read(table, id, 1, used.table.data() + entry->second * hidden);
    }
    used.ids.push_back(entry->second);
  }
  return used;
}

}  // namespace

std::vector<float> streamed_logits(const Exec& ex, const ModelSpec& spec, const ReadRows& read, std::span<const std::uint32_t> ids, const CancelFlag* cancel) {
  const Exec exact{ex.pool, ex.isa, Compute::f32};
  const auto tokens = static_cast<std::int64_t>(ids.size());
  const std::array<std::int64_t, 2> offsets{0, tokens};
  const std::array<LoraSegment, 1> segments{LoraSegment{0, tokens, nullptr}};
  const PackedTokens packed{ids, offsets};
  check_packed(spec, packed);

  Arena arena;
  RopeCache ropes(spec.ropes);
  DecoderWeights weights;
  weights.layers.resize(static_cast<std::size_t>(spec.layers));
  const Pass pass{.ex = exact, .spec = spec, .weights = weights, .ropes = ropes, .arena = arena, .adapters = segments, .cancel = cancel};
  prepare_packed_ropes(pass, packed);
  PackedAttention attention(offsets);

  std::map<std::string, ParameterSpec> outer;
  std::vector<std::vector<ParameterSpec>> layers(static_cast<std::size_t>(spec.layers));
  constexpr std::string_view kLayers = "model.layers.";
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    if (parameter.name.starts_with(kLayers))
      layers[std::stoull(parameter.name.substr(kLayers.size()))].push_back(parameter);
    else
      outer.emplace(parameter.name, parameter);
  }

  const ParameterSpec& table = outer.at("model.embed_tokens.weight");
  Rows x = arena.rows(tokens, spec.hidden), y = arena.rows(tokens, spec.hidden);
  {
    const UsedTokens used = read_used_tokens(table, read, ids, spec.hidden);
    const Matrix rows{Dtype::f32, static_cast<std::int64_t>(used.table.size()) / spec.hidden, spec.hidden, used.table.data(), {}};
    embed_forward(exact, rows, used.ids, embedding_scale(spec, Compute::f32), x);                        // [T, hidden]
  }
  LayerActivations activations = take_activations(arena, spec, tokens, nullptr, Keep::nothing);
  LoadedParameters loaded(spec, read, weights);
  for (std::int64_t layer = 0; layer < spec.layers; ++layer) {
    check_cancelled(cancel);
    loaded.drop();
    for (const ParameterSpec& parameter : layers[static_cast<std::size_t>(layer)]) loaded.load(parameter);
    layer_forward(pass, layer, x, activations, attention, y);                                           // [T, hidden]
    std::swap(x, y);
  }
  loaded.drop();

  loaded.load(outer.at("model.norm.weight"));
  rmsnorm_forward(exact, {weights.final_norm, spec.hidden, spec.norm_eps, spec.norm_offset}, x, y, nullptr);  // [T, hidden]
  const ParameterSpec& head = spec.tied ? table : outer.at("lm_head.weight");
  std::vector<float> logits(static_cast<std::size_t>(tokens * spec.vocab));
  const std::int64_t step = std::clamp<std::int64_t>(kHeadChunk / spec.hidden, 1, spec.vocab);
  std::vector<float> rows(static_cast<std::size_t>(step * spec.hidden));
  for (std::int64_t first = 0; first < spec.vocab; first += step) {
    check_cancelled(cancel);
    const std::int64_t count = std::min(step, spec.vocab - first);
    read(head, first, count, rows.data());
    linear(exact, y, Matrix{Dtype::f32, count, spec.hidden, rows.data(), {}}, nullptr, Rows(logits.data() + first, tokens, count, spec.vocab));
  }
  if (spec.logit_softcap > 0) softcap_logits(exact, Rows(logits.data(), tokens, spec.vocab), spec.logit_softcap);
  return logits;
}

}  // namespace engine
