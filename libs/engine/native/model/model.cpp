#include "model/model.h"

#include <algorithm>

#include "core/cpu_info.h"
#include "core/error.h"
#include "model/forward.h"
#include "ops/cross_entropy.h"

namespace engine {
namespace {

constexpr std::int64_t kLogitChunkElements = std::int64_t{1} << 22;  // 16 MB of logits at a time

ModelInfo describe(const ModelSpec& spec) {
  ModelInfo info;
  info.architecture = spec.architecture;
  info.model_type = spec.model_type;
  info.layers = spec.layers;
  info.hidden_size = spec.hidden;
  info.vocab_size = spec.vocab;
  info.parameter_count = parameter_count(spec);
  info.context_length = spec.context;
  info.tied = spec.tied;
  info.target_modules = known_target_modules();
  return info;
}

// The hidden states of one sequence, and the pass they belong to.
struct SequencePass {
  Arena arena;
  RopeCache ropes;
  std::array<LoraSegment, 1> segments;
  std::array<std::int64_t, 2> offsets;
  PackedTokens tokens;
  Pass pass;
  Rows hidden;

  SequencePass(const Model& model, std::span<const std::uint32_t> ids, const LoraAdapter* adapter, const CancelFlag* cancel)
      : ropes(model.spec().ropes), segments{LoraSegment{0, static_cast<std::int64_t>(ids.size()), adapter}}, offsets{0, static_cast<std::int64_t>(ids.size())},
        tokens{ids, offsets},
        pass{.ex = model.exec(), .spec = model.spec(), .weights = model.weights(), .ropes = ropes, .arena = arena, .adapters = segments, .cancel = cancel} {
    check_packed(model.spec(), tokens);
    prepare_packed_ropes(pass, tokens);
    PackedAttention attention(offsets);
    hidden = hidden_states(pass, ids, attention);
  }
};

}  // namespace

ModelInfo inspect_model(const std::filesystem::path& dir) {
  const HfFolder folder(dir);
  const ModelSpec spec = read_spec(folder.config());
  check_tensors(spec, folder);
  ModelInfo info = describe(spec);
  info.stored_dtype = folder.at("model.embed_tokens.weight").dtype;
  info.weight_bytes = folder.weight_bytes();
  for (const ParameterSpec& parameter : parameters_of(spec))
    if (const auto nf4 = find_nf4(folder, parameter.name)) {
      info.nf4 = true;
      info.double_quant = info.double_quant || nf4->double_quant;
    }
  return info;
}

Model::Model(const std::filesystem::path& dir, const LoadOptions& options)
    : dir_(dir), spec_(read_spec(dir)), pool_(options.threads > 0 ? options.threads : available_threads()), exec_(make_exec(pool_, options.compute)),
      weights_(std::make_unique<ModelWeights>(spec_, dir, options.quantize, exec_, options.cancel)), info_(describe(spec_)) {
  info_.stored_dtype = weights_->stored_dtype();
  info_.nf4 = weights_->quantized();
  info_.double_quant = weights_->double_quantized();
  info_.weight_bytes = weights_->bytes();
}

Model::Turn::Turn(Model& model) : model_(model) {
  std::unique_lock lock(model.turns_mutex_);
  const std::uint64_t ticket = model.next_ticket_++;
  model.turn_changed_.wait(lock, [&] { return model.serving_ == ticket; });
}

Model::Turn::~Turn() {
  {
    const std::lock_guard lock(model_.turns_mutex_);
    ++model_.serving_;
  }
  model_.turn_changed_.notify_all();
}

LoraAdapter Model::load_adapter(const std::filesystem::path& dir) {
  LoraAdapter adapter = LoraAdapter::read(spec_, dir);
  if (adapter.bound()) return adapter;
  const Turn turn(*this);
  Arena arena;
  adapter.bind(exec_, weights(), arena);
  return adapter;
}

std::vector<float> Model::logits(std::span<const std::uint32_t> ids, const LoraAdapter* adapter, const CancelFlag* cancel) {
  require(!ids.empty(), "logits need at least one token");
  const Turn turn(*this);
  SequencePass run(*this, ids, adapter, cancel);
  const auto tokens = static_cast<std::int64_t>(ids.size());
  std::vector<float> out(static_cast<std::size_t>(tokens * spec_.vocab));
  head_logits(run.pass, run.segments, run.hidden, run.arena.rows(tokens, spec_.hidden), Rows(out.data(), tokens, spec_.vocab));
  return out;
}

std::vector<float> Model::score(std::span<const std::uint32_t> ids, const LoraAdapter* adapter, const CancelFlag* cancel) {
  require(ids.size() >= 2, "scoring needs at least two tokens; ", ids.size(), " given");
  const Turn turn(*this);
  SequencePass run(*this, ids, adapter, cancel);
  const std::int64_t predicted = static_cast<std::int64_t>(ids.size()) - 1;
  const std::int64_t chunk = std::clamp<std::int64_t>(kLogitChunkElements / spec_.vocab, 1, predicted);
  const Rows normed = run.arena.rows(chunk, spec_.hidden), logits = run.arena.rows(chunk, spec_.vocab);
  const std::vector<float> ones(static_cast<std::size_t>(chunk), 1.0f);
  std::vector<float> out(static_cast<std::size_t>(predicted));
  for (std::int64_t first = 0; first < predicted; first += chunk) {
    check_cancelled(cancel);
    const std::int64_t count = std::min(chunk, predicted - first);
    const Rows z(logits.data, count, spec_.vocab);
    const std::array rows{LoraSegment{0, count, adapter}};
    head_logits(run.pass, rows, ConstRows(run.hidden.row(first), count, spec_.hidden), Rows(normed.data, count, spec_.hidden), z);
    cross_entropy(exec_, z, ids.subspan(static_cast<std::size_t>(first) + 1, static_cast<std::size_t>(count)),
                  std::span(ones).first(static_cast<std::size_t>(count)), 0.0f, LogitGradient::none, out.data() + first);
  }
  for (float& value : out) value = -value;
  return out;
}

}  // namespace engine
