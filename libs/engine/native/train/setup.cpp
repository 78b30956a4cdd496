#include "train/setup.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "train/flops.h"

namespace engine {

void check_trainer_options(const TrainerOptions& options) {
  const Schedule& schedule = options.schedule;
  require(std::isfinite(schedule.learning_rate) && schedule.learning_rate >= 0, "the learning rate is ", schedule.learning_rate, "; use 0 or more");
  require(schedule.total_steps >= 1, "the schedule has ", schedule.total_steps, " steps; use 1 or more");
  require(schedule.warmup_steps >= 0 && schedule.warmup_steps <= schedule.total_steps, "the warm-up has ", schedule.warmup_steps, " of ",
          schedule.total_steps, " steps");
  require(std::isfinite(options.max_grad_norm) && options.max_grad_norm >= 0, "the largest gradient norm is ", options.max_grad_norm,
          "; use 0 for no clipping, or more");
  require(std::isfinite(options.neftune_alpha) && options.neftune_alpha >= 0, "neftune's alpha is ", options.neftune_alpha, "; use 0 or more");
  require(options.memory_budget >= 0, "the memory budget is ", options.memory_budget, " bytes; use 0 for what is free, or more");
  require(options.micro_batch_tokens >= 0, "the longest micro-batch is ", options.micro_batch_tokens, " tokens; use 0 for unknown, or more");
}

StreamKeys stream_keys(std::uint64_t seed, std::int64_t step, std::size_t micro) {
  constexpr std::uint32_t kTag = 0x74726169;  // apart from the streams that initialize an adapter
  const PhiloxBlock words =
      philox4x32(seed, {static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32), static_cast<std::uint32_t>(micro), kTag});
  return {words[0] | std::uint64_t{words[1]} << 32, words[2] | std::uint64_t{words[3]} << 32};
}

namespace {

// Throws invalid naming the first thing in which an adapter to start from is not what the options describe.
void require_same_shape(const LoraConfig& stored, const LoraConfig& wanted) {
  const auto sorted = [](std::vector<std::string> names) {
    std::ranges::sort(names);
    return names;
  };
  require(stored.rank == wanted.rank, "the initial adapter has rank ", stored.rank, ", but the options say ", wanted.rank);
  require(sorted(stored.target_modules) == sorted(wanted.target_modules), "the initial adapter's target modules are not the options'");
  require(stored.dora == wanted.dora, "the initial adapter is ", stored.dora ? "" : "not ", "a DoRA adapter, but the options say otherwise");
  require(sorted(stored.modules_to_save) == sorted(wanted.modules_to_save), "the initial adapter's modules to save are not the options'");
  require(stored.layers == wanted.layers, "the initial adapter's layers are not the options'");
  require(stored.rank_pattern == wanted.rank_pattern && stored.alpha_pattern == wanted.alpha_pattern,
          "the initial adapter's ranks or alphas of some modules are not the options'");
}

}  // namespace

TrainerOptions with_initial_patterns(TrainerOptions options) {
  if (!options.lora || options.initial_adapter_dir.empty() || !options.lora->rank_pattern.empty() || !options.lora->alpha_pattern.empty()) return options;
  const LoraConfig stored = PeftAdapter(options.initial_adapter_dir).config();
  options.lora->rank_pattern = stored.rank_pattern;
  options.lora->alpha_pattern = stored.alpha_pattern;
  return options;
}

LoraAdapter initial_adapter(const ModelSpec& spec, const TrainerOptions& options) {
  LoraAdapter adapter(spec, *options.lora);
  if (options.initial_adapter_dir.empty()) {
    adapter.initialize(options.seed);
    return adapter;
  }
  const LoraAdapter stored = LoraAdapter::read(spec, options.initial_adapter_dir);
  require_same_shape(stored.config(), *options.lora);
  require(stored.size() == adapter.size(), "the initial adapter has ", stored.size(), " values, but the options call for ", adapter.size());
  std::copy_n(stored.data(), stored.size(), adapter.data());
  return adapter;
}

void require_same_tensors(const LoraAdapter& stored, const LoraAdapter& trained) {
  const auto places_of = [](const LoraAdapter& adapter) {
    std::vector<std::pair<std::string, std::int64_t>> places{{"", adapter.size()}};
    for (const TrainableTensor& tensor : trainable_tensors(adapter)) places.emplace_back(tensor.name, tensor.offset);
    return places;
  };
  require(places_of(stored) == places_of(trained), "the adapter's tensors are not those of the adapter that is trained");
}

std::vector<TrainableTensor> trainable_tensors(const LoraAdapter& adapter) {
  std::vector<TrainableTensor> tensors;
  adapter.for_each_tensor([&](const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t offset) {
    tensors.push_back({name, offset, element_count(shape), true, offset == adapter.embedding_offset()});
  });
  return tensors;
}

std::vector<TrainableTensor> trainable_tensors(const std::vector<FullParameters::Entry>& parameters) {
  std::vector<TrainableTensor> tensors;
  for (const auto& [parameter, offset, size] : parameters)
    tensors.push_back({parameter.name, offset, size, parameter.shape.size() == 2, parameter.name == "model.embed_tokens.weight"});
  return tensors;
}

LabelledStep label_step(const ModelSpec& spec, std::span<const MicroBatch> micros, bool all_weights) {
  require(!micros.empty(), "a step needs at least one micro-batch");
  LabelledStep step;
  for (const MicroBatch& micro : micros) {
    step.batches.push_back(label_batch(spec, micro));
    step.tokens += step.batches.back().tokens();
    step.labels += step.batches.back().labels();
    step.flops += training_flops(spec, step.batches.back(), all_weights);
  }
  require(step.labels > 0, "no token of the ", micros.size(), " micro-batches is to be predicted; check the loss mask and the row lengths");
  return step;
}

}  // namespace engine
