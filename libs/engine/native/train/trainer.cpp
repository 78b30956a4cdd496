#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/staged_output.h"
#include "ops/reduce.h"
#include "train/checkpoint.h"
#include "train/memory_plan.h"
#include "train/setup.h"

namespace engine {

Trainer::Trainer(std::shared_ptr<Model> model, const TrainerOptions& options) : model_(std::move(model)), options_(with_initial_patterns(options)), ropes_(model_->spec().ropes) {
  check_trainer_options(options_);
  if (options_.micro_batch_tokens > 0)
    plan_ = plan_training(model_->spec(), model_->resident_bytes(), options_, options_.micro_batch_tokens);
  else if (options_.memory_budget > 0)
    plan_training(model_->spec(), model_->resident_bytes(), options_, 2);  // what no run can do without
  if (options_.lora) {
    adapter_ = initial_adapter(model_->spec(), options_);
    const Model::Turn turn(*model_);
    if (options_.initial_adapter_dir.empty())
      adapter_->start_from(model_->exec(), model_->weights(), arena_);
    else
      adapter_->bind(model_->exec(), model_->weights(), arena_);
    arena_.clear();
  } else {
    full_ = std::make_unique<FullParameters>(model_->spec(), model_->weights());
  }
  const std::vector<TrainableTensor> tensors = adapter_ ? trainable_tensors(*adapter_) : trainable_tensors(full_->entries());
  for (const TrainableTensor& tensor : tensors) trainable_count_ += tensor.size;
  optimizer_.emplace(options_.optimizer, tensors);
  gradients_.assign(static_cast<std::size_t>(value_count()), 0.0f);
  peak_bytes_ = held_bytes();
}

std::optional<TrainingPlan> Trainer::plan() const {
  const std::lock_guard lock(busy_);
  return plan_;
}

TrainingPlan Trainer::plan_for(const LabelledBatch& batch) const {
  return plan_training(model_->spec(), model_->resident_bytes(), options_, batch.tokens(), batch.labels());
}

void Trainer::make_room(const LabelledStep& step) {
  std::optional<TrainingPlan> largest;
  for (const LabelledBatch& batch : step.batches) {
    TrainingPlan plan = plan_for(batch);
    if (!largest || plan.device_bytes > largest->device_bytes) largest = std::move(plan);
  }
  const Model::Turn turn(*model_);
  arena_.reserve(arena_bytes(*largest));
  if (!plan_ || largest->device_bytes > plan_->device_bytes) plan_ = std::move(largest);
}

std::int64_t Trainer::held_bytes() const {
  const std::int64_t values = adapter_ ? adapter_->bytes() : 4 * full_->size();
  return model_->resident_bytes() + values + 4 * static_cast<std::int64_t>(gradients_.size()) + optimizer_->state_bytes() + arena_.capacity_bytes() +
         model_->exec().pool.workspace_bytes();
}

Pass Trainer::make_pass(std::span<const LoraSegment> segments, const CancelFlag* cancel) {
  return {.ex = model_->exec(), .spec = model_->spec(), .weights = weights(), .ropes = ropes_, .arena = arena_, .adapters = segments, .cancel = cancel};
}

void Trainer::follow_values() {
  if (!adapter_ || !norms_stale_) return;
  const Model::Turn turn(*model_);
  arena_.reset();
  adapter_->bind(model_->exec(), model_->weights(), arena_);
  norms_stale_ = false;
}

StepResult Trainer::train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  const std::lock_guard lock(busy_);
  const auto start = std::chrono::steady_clock::now();
  StepResult result;
  const LabelledStep step = label_step(model_->spec(), micros, full_ != nullptr);
  result.tokens = step.tokens;
  result.flops = step.flops;
  result.trainable_tokens = step.labels;

  make_room(step);
  gradients_complete_ = false;
  std::ranges::fill(gradients_, 0.0f);
  follow_values();
  const Gradients gradients = adapter_ ? Gradients::of_adapter(*adapter_, gradients_.data()) : Gradients::of_parameters(full_->view(), full_->data(), gradients_.data());
  for (std::size_t i = 0; i < step.batches.size(); ++i) {
    const Model::Turn turn(*model_);
    check_cancelled(cancel);
    arena_.reset();
    const StreamKeys keys = stream_keys(options_.seed, step_, i);
    const std::array segments{LoraSegment{0, step.batches[i].tokens(), adapter_ ? &*adapter_ : nullptr}};
    Pass pass = make_pass(segments, cancel);
    pass.dropout = adapter_ ? static_cast<float>(adapter_->config().dropout) : 0.0f;
    pass.dropout_key = keys.dropout;
    const std::int64_t one_layer = activation_bytes(model_->spec(), step.batches[i].tokens(), adapter_ ? &*adapter_ : nullptr);
    const MicroStepOptions micro_options{plan_for(step.batches[i]).kept_layers * one_layer, static_cast<float>(options_.neftune_alpha), keys.neftune};
    result.loss += run_micro_step(pass, step.batches[i], step.weight(), micro_options, gradients);
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
    norms_stale_ = true;
  }
  result.step = ++step_;
  result.peak_bytes = peak_bytes_;
  result.duration_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Evaluation Trainer::evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  const std::lock_guard lock(busy_);
  Evaluation result;
  const LabelledStep step = label_step(model_->spec(), micros);
  result.trainable_tokens = step.labels;
  make_room(step);
  follow_values();
  for (const LabelledBatch& batch : step.batches) {
    const Model::Turn turn(*model_);
    check_cancelled(cancel);
    arena_.reset();
    const std::array segments{LoraSegment{0, batch.tokens(), adapter_ ? &*adapter_ : nullptr}};
    result.loss += run_evaluation(make_pass(segments, cancel), batch, step.weight());
    peak_bytes_ = std::max(peak_bytes_, held_bytes());
  }
  return result;
}

std::vector<std::vector<float>> Trainer::score_adapter(const std::filesystem::path& dir, std::span<const std::vector<std::uint32_t>> sequences, const CancelFlag* cancel) {
  require(adapter_.has_value(), "every weight is trained, so there is no adapter to score");
  const LoraAdapter stored = model_->load_adapter(dir);
  require_same_tensors(stored, *adapter_);
  std::vector<std::vector<float>> scores;
  for (const std::vector<std::uint32_t>& ids : sequences) scores.push_back(model_->score(ids, &stored, cancel));
  return scores;
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
  write_checkpoint(staged.path(), {describe_run(model_->spec(), model_->exec().compute, options_), step_, optimizer_->updates()}, optimizer_->state(), adapter_ ? &*adapter_ : nullptr,
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
  norms_stale_ = true;
  step_ = state.step;
  gradients_complete_ = false;
}

}  // namespace engine
