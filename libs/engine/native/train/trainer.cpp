#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "core/staged_output.h"
#include "ops/reduce.h"
#include "train/checkpoint.h"

namespace engine {
namespace {

void check_options(const TrainerOptions& options) {
  const Schedule& schedule = options.schedule;
  require(std::isfinite(schedule.learning_rate) && schedule.learning_rate >= 0, "the learning rate is ", schedule.learning_rate, "; use 0 or more");
  require(schedule.total_steps >= 1, "the schedule has ", schedule.total_steps, " steps; use 1 or more");
  require(schedule.warmup_steps >= 0 && schedule.warmup_steps <= schedule.total_steps, "the warm-up has ", schedule.warmup_steps, " of ",
          schedule.total_steps, " steps");
  require(std::isfinite(options.max_grad_norm) && options.max_grad_norm >= 0, "the largest gradient norm is ", options.max_grad_norm,
          "; use 0 for no clipping, or more");
  require(std::isfinite(options.neftune_alpha) && options.neftune_alpha >= 0, "neftune's alpha is ", options.neftune_alpha, "; use 0 or more");
}

// Keys of the random streams of one micro-batch. They depend on seed, step and micro-batch alone, so a resumed run draws the same numbers.
struct StreamKeys {
  std::uint64_t dropout, neftune;
};
StreamKeys stream_keys(std::uint64_t seed, std::int64_t step, std::size_t micro) {
  constexpr std::uint32_t kTag = 0x74726169;  // apart from the streams that initialize an adapter
  const PhiloxBlock words =
      philox4x32(seed, {static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32), static_cast<std::uint32_t>(micro), kTag});
  return {words[0] | std::uint64_t{words[1]} << 32, words[2] | std::uint64_t{words[3]} << 32};
}

LoraAdapter initial_adapter(const ModelSpec& spec, const TrainerOptions& options) {
  LoraAdapter adapter(spec, *options.lora);
  if (options.initial_adapter_dir.empty()) {
    adapter.initialize(options.seed);
    return adapter;
  }
  const LoraAdapter stored = LoraAdapter::read(spec, options.initial_adapter_dir);
  const auto sorted = [](std::vector<std::string> names) {
    std::ranges::sort(names);
    return names;
  };
  require(stored.config().rank == options.lora->rank, "the initial adapter has rank ", stored.config().rank, ", but the options say ", options.lora->rank);
  require(sorted(stored.config().target_modules) == sorted(options.lora->target_modules), "the initial adapter's target modules are not the options'");
  std::copy_n(stored.data(), stored.size(), adapter.data());
  return adapter;
}

}  // namespace

Trainer::Trainer(std::shared_ptr<Model> model, const TrainerOptions& options) : model_(std::move(model)), options_(options), ropes_(model_->spec().ropes) {
  check_options(options_);
  if (options_.lora)
    adapter_ = initial_adapter(model_->spec(), options_);
  else
    full_ = std::make_unique<FullParameters>(model_->spec(), model_->weights());
  const std::vector<TrainableTensor> tensors = trainable_tensors();
  for (const TrainableTensor& tensor : tensors) trainable_count_ += tensor.size;
  optimizer_.emplace(options_.optimizer, tensors);
  gradients_.assign(static_cast<std::size_t>(value_count()), 0.0f);
  peak_bytes_ = held_bytes();
}

std::vector<TrainableTensor> Trainer::trainable_tensors() const {
  std::vector<TrainableTensor> tensors;
  if (adapter_) {
    adapter_->for_each_tensor([&](const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t offset) {
      tensors.push_back({name, offset, shape[0] * shape[1], true, false});
    });
    return tensors;
  }
  for (const auto& entry : full_->entries())
    tensors.push_back({entry.parameter.name, entry.offset, entry.size, entry.parameter.shape.size() == 2, entry.parameter.name == "model.embed_tokens.weight"});
  return tensors;
}

std::int64_t Trainer::held_bytes() const {
  return model_->resident_bytes() + 4 * (value_count() + static_cast<std::int64_t>(gradients_.size())) + optimizer_->state_bytes() + arena_.capacity_bytes() +
         model_->exec().pool.workspace_bytes();
}

std::vector<LabelledBatch> Trainer::label_all(std::span<const MicroBatch> micros, std::int64_t& tokens, std::int64_t& labels) const {
  require(!micros.empty(), "a step needs at least one micro-batch");
  std::vector<LabelledBatch> batches;
  for (const MicroBatch& micro : micros) {
    batches.push_back(label_batch(model_->spec(), micro));
    tokens += batches.back().tokens();
    labels += batches.back().labels();
  }
  require(labels > 0, "no token of the ", micros.size(), " micro-batches is to be predicted; check the loss mask and the row lengths");
  return batches;
}

Pass Trainer::make_pass(std::span<const LoraSegment> segments, const CancelFlag* cancel) {
  return {.ex = model_->exec(), .spec = model_->spec(), .weights = weights(), .ropes = ropes_, .arena = arena_, .adapters = segments, .cancel = cancel};
}

StepResult Trainer::train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  const std::lock_guard lock(busy_);
  const auto start = std::chrono::steady_clock::now();
  StepResult result;
  const std::vector<LabelledBatch> batches = label_all(micros, result.tokens, result.trainable_tokens);
  const float weight = 1.0f / static_cast<float>(result.trainable_tokens);

  gradients_complete_ = false;
  std::ranges::fill(gradients_, 0.0f);
  Gradients gradients;
  if (adapter_) {
    gradients.lora = gradients_.data();
  } else {
    gradients.parameters = full_->data();
    gradients.full = gradients_.data();
  }
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const Model::Turn turn(*model_);
    check_cancelled(cancel);
    arena_.reset();
    const StreamKeys keys = stream_keys(options_.seed, step_, i);
    const std::array segments{LoraSegment{0, batches[i].tokens(), adapter_ ? &*adapter_ : nullptr}};
    Pass pass = make_pass(segments, cancel);
    pass.dropout = adapter_ ? static_cast<float>(adapter_->config().dropout) : 0.0f;
    pass.dropout_key = keys.dropout;
    const MicroStepOptions micro_options{options_.gradient_checkpointing ? kActivationBudget : kKeepAll, static_cast<float>(options_.neftune_alpha), keys.neftune};
    result.loss += run_micro_step(pass, batches[i], weight, micro_options, gradients);
    peak_bytes_ = std::max(peak_bytes_, held_bytes());
  }
  gradients_complete_ = true;

  const Model::Turn turn(*model_);
  check_cancelled(cancel);
  result.grad_norm = std::sqrt(sum_of_squares(model_->exec(), gradients_.data(), value_count()));
  result.learning_rate = learning_rate_at(options_.schedule, step_);
  result.skipped = !std::isfinite(result.grad_norm) || !std::isfinite(result.loss);
  if (!result.skipped) {
    // torch.nn.utils.clip_grad_norm_: scale by max / (norm + 1e-6) when that is below 1.
    const double clip = options_.max_grad_norm > 0 ? std::min(1.0, options_.max_grad_norm / (result.grad_norm + 1e-6)) : 1.0;
    optimizer_->update(model_->exec(), result.learning_rate, static_cast<float>(clip), values(), gradients_.data());
  }
  result.step = ++step_;
  result.peak_bytes = peak_bytes_;
  result.duration_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Evaluation Trainer::evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  const std::lock_guard lock(busy_);
  Evaluation result;
  std::int64_t tokens = 0;
  const std::vector<LabelledBatch> batches = label_all(micros, tokens, result.trainable_tokens);
  const float weight = 1.0f / static_cast<float>(result.trainable_tokens);
  for (const LabelledBatch& batch : batches) {
    const Model::Turn turn(*model_);
    check_cancelled(cancel);
    arena_.reset();
    const std::array segments{LoraSegment{0, batch.tokens(), adapter_ ? &*adapter_ : nullptr}};
    result.loss += run_evaluation(make_pass(segments, cancel), batch, weight);
    peak_bytes_ = std::max(peak_bytes_, held_bytes());
  }
  return result;
}

void Trainer::save(const std::filesystem::path& dir, const std::string& base_model_name) const {
  const std::lock_guard lock(busy_);
  StagedDirectory staged(dir, IfExists::replace);
  if (adapter_)
    adapter_->write(staged.path(), base_model_name);
  else
    write_model_folder(staged.path(), model_->dir(), *full_, model_->info().stored_dtype);
  staged.commit();
}

void Trainer::save_gradients(const std::filesystem::path& file) const {
  const std::lock_guard lock(busy_);
  require(gradients_complete_, "there are no gradients yet: no step has completed since the trainer was made, restored or cancelled");
  if (adapter_) {
    adapter_->write_tensors(file, gradients_.data());
    return;
  }
  std::vector<NamedTensor> tensors;
  for (const auto& entry : full_->entries()) tensors.push_back({{entry.parameter.name, Dtype::f32, entry.parameter.shape}, gradients_.data() + entry.offset});
  write_safetensors(file, tensors, {{"format", "pt"}});
}

void Trainer::save_checkpoint(const std::filesystem::path& dir) const {
  const std::lock_guard lock(busy_);
  StagedDirectory staged(dir, IfExists::replace);
  write_checkpoint(staged.path(), {describe_run(model_->spec(), model_->exec().compute, options_), step_, optimizer_->updates()}, *optimizer_, adapter_ ? &*adapter_ : nullptr,
                   full_.get());
  staged.commit();
}

void Trainer::restore_checkpoint(const std::filesystem::path& dir) {
  const std::lock_guard lock(busy_);
  const CheckpointState state = read_checkpoint_state(dir, describe_run(model_->spec(), model_->exec().compute, options_));
  // Everything that can fail comes before the first change.
  const std::vector<float> stored = read_checkpoint_values(dir, adapter_ ? &*adapter_ : nullptr, full_.get());
  optimizer_->restore(SafetensorsFile(dir / kOptimizerFile), state.updates);
  std::ranges::copy(stored, values());
  step_ = state.step;
  gradients_complete_ = false;
}

}  // namespace engine
