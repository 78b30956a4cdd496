#include "cuda/train/cuda_trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <exception>
#include <thread>

#include "core/error.h"
#include "core/staged_output.h"
#include "train/checkpoint.h"

namespace engine::cuda {
namespace {

const LoraConfig& adapter_config(const TrainerOptions& options) {
  check_trainer_options(options);
  require(Code::unsupported, options.lora.has_value(), "full-parameter training runs on the CPU only; train an adapter, or use device cpu");
  return *options.lora;
}

LoraAdapter checked_adapter(const TrainingBase& base, const TrainerOptions& options) {
  adapter_config(options);
  LoraAdapter adapter = initial_adapter(base.spec, options);
  if (options.initial_adapter_dir.empty()) adapter.copy_whole_modules(base.weights);
  return adapter;
}

}  // namespace

CudaTrainer::CudaTrainer(const TrainingBase& base, std::span<const int> devices, const TrainerOptions& options, std::unique_ptr<GradientSum> sum)
    : base_(base), options_(options), adapter_(checked_adapter(base, options)), runs_(optimizer_runs(options.optimizer, trainable_tensors(adapter_))) {
  require(!devices.empty(), "a trainer needs at least one device");
  const std::int64_t tokens = std::max<std::int64_t>(1, options.micro_batch_tokens);
  for (const int device : devices) replicas_.push_back(std::make_unique<Replica>(device, base_, adapter_, runs_, tokens, options.memory_budget));
  if (options.initial_adapter_dir.empty())
    for (const auto& replica : replicas_) replica->begin_magnitudes();
  if (replicas_.size() > 1) sum_ = sum != nullptr ? std::move(sum) : make_gradient_sum(devices);
}

template <class Work>
auto CudaTrainer::alone(const Work& work) const {
  const std::lock_guard lock(busy_);
  require(Code::device_lost, !lost_, "the GPU was lost earlier; restart the process");
  try {
    return work();
  } catch (const Error& error) {
    lost_ = error.code() == Code::device_lost;
    if (!lost_)
      for (const auto& replica : replicas_) replica->abandon();
    throw;
  }
}

template <class F>
void CudaTrainer::on_each(const F& f) const {
#ifdef ENGINE_CUDA_EMULATED
  constexpr bool at_once = false;  // the emulation runs on the thread that waits
#else
  const bool at_once = replicas_.size() > 1;
#endif
  if (!at_once) {
    for (std::size_t i = 0; i < replicas_.size(); ++i) f(*replicas_[i], i);
    return;
  }
  std::vector<std::exception_ptr> failures(replicas_.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < replicas_.size(); ++i)
      threads.emplace_back([&, i] {
        try {
          f(*replicas_[i], i);
        } catch (...) {
          failures[i] = std::current_exception();
        }
      });
  }
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

void CudaTrainer::reserve(const LabelledStep& step) const {
  std::int64_t longest = 0;
  for (const LabelledBatch& batch : step.batches) longest = std::max(longest, batch.tokens());
  for (const auto& replica : replicas_) replica->reserve(longest);
}

std::optional<TrainingPlan> CudaTrainer::plan() const { return replicas_.front()->describe(); }

StepResult CudaTrainer::train_step(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  return alone([&] {
    const auto start = std::chrono::steady_clock::now();
    const LabelledStep step = label_step(base_.spec, micros);
    StepResult result;
    result.tokens = step.tokens;
    result.flops = step.flops;
    result.trainable_tokens = step.labels;
    reserve(step);

    gradients_complete_ = false;
    const Replica::Noise noise{{}, static_cast<float>(options_.lora->dropout), static_cast<float>(options_.neftune_alpha)};
    on_each([&](Replica& replica, std::size_t number) {
      replica.begin(Replica::Clear::loss_and_gradients);
      for (std::size_t i = number; i < step.batches.size(); i += replicas_.size()) {
        Replica::Noise drawn = noise;
        drawn.keys = stream_keys(options_.seed, step_, i);
        replica.micro_step(step.batches[i], step.weight(), drawn, cancel);
      }
    });
    if (sum_ != nullptr) {
      std::vector<SumPart> parts;
      for (const auto& replica : replicas_) parts.push_back({replica->device(), replica->gradients(), replica->stream()});
      sum_->add_up(parts, adapter_.size());
    }
    check_cancelled(cancel);

    result.learning_rate = learning_rate_at(options_.schedule, step_);
    std::vector<StepScalars> scalars(replicas_.size());
    on_each([&](Replica& replica, std::size_t number) {
      replica.update(options_.optimizer, result.learning_rate, options_.max_grad_norm, updates_ + 1);
      scalars[number] = replica.finish();
    });
    gradients_complete_ = true;
    for (const StepScalars& of : scalars) result.loss += of.loss;
    result.grad_norm = std::sqrt(scalars.front().sum_of_squares);
    result.skipped = !std::isfinite(scalars.front().clip_scale);
    if (!result.skipped) ++updates_;
    result.step = ++step_;
    result.phases = replicas_.front()->phases();
    for (const auto& replica : replicas_) result.peak_bytes = std::max(result.peak_bytes, replica->plan().use.device());
    result.duration_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    return result;
  });
}

Evaluation CudaTrainer::evaluate(std::span<const MicroBatch> micros, const CancelFlag* cancel) {
  return alone([&] {
    const LabelledStep step = label_step(base_.spec, micros);
    reserve(step);
    std::vector<double> losses(replicas_.size());
    on_each([&](Replica& replica, std::size_t number) {
      replica.begin(Replica::Clear::loss);
      for (std::size_t i = number; i < step.batches.size(); i += replicas_.size()) replica.evaluate(step.batches[i], step.weight(), cancel);
      losses[number] = replica.finish().loss;
    });
    Evaluation result;
    result.trainable_tokens = step.labels;
    for (const double loss : losses) result.loss += loss;
    return result;
  });
}

std::vector<std::vector<float>> CudaTrainer::score_adapter(const std::filesystem::path& dir, std::span<const std::vector<std::uint32_t>> sequences, const CancelFlag* cancel) {
  return alone([&] {
    const LoraAdapter stored = LoraAdapter::read(base_.spec, dir), trained = current_adapter();
    require_same_tensors(stored, trained);
    std::vector<std::vector<float>> scores;
    if (sequences.empty()) return scores;
    // Every token but the first is predicted.
    std::vector<std::array<std::uint32_t, 2>> offsets;
    std::vector<std::vector<std::uint8_t>> masks;
    for (const std::vector<std::uint32_t>& ids : sequences) {
      require(ids.size() >= 2, "scoring needs at least two tokens; ", ids.size(), " given");
      offsets.push_back({0, static_cast<std::uint32_t>(ids.size())});
      masks.emplace_back(ids.size(), std::uint8_t{1});
    }
    std::vector<MicroBatch> micros;
    for (std::size_t i = 0; i < sequences.size(); ++i) micros.push_back({sequences[i], masks[i], offsets[i]});
    const LabelledStep step = label_step(base_.spec, micros);
    reserve(step);
    Replica& replica = *replicas_.front();
    try {
      replica.write_values(stored.data());
      for (const LabelledBatch& batch : step.batches) scores.push_back(replica.score(batch, cancel));
      replica.write_values(trained.data());
    } catch (const Error& error) {
      if (error.code() != Code::device_lost) {
        replica.abandon();
        replica.write_values(trained.data());
      }
      throw;
    }
    return scores;
  });
}

LoraAdapter CudaTrainer::current_adapter() const {
  LoraAdapter adapter = adapter_;
  replicas_.front()->read_values(adapter.data());
  return adapter;
}

void CudaTrainer::save(const std::filesystem::path& dir, const std::string& base_model_name) const {
  alone([&] {
    StagedDirectory staged(dir, IfExists::replace);
    current_adapter().write(staged.path(), base_model_name);
    staged.commit();
  });
}

void CudaTrainer::save_gradients(const std::filesystem::path& file) const {
  alone([&] {
    require(gradients_complete_, "there are no gradients yet: no step has completed since the trainer was made, restored or cancelled");
    std::vector<float> gradients(static_cast<std::size_t>(adapter_.size()));
    replicas_.front()->read_gradients(gradients.data());
    adapter_.write_tensors(file, gradients.data());
  });
}

void CudaTrainer::save_checkpoint(const std::filesystem::path& dir) const {
  alone([&] {
    std::vector<std::vector<std::uint8_t>> bytes;
    std::vector<NamedTensor> state;
    for (std::size_t r = 0; r < runs_.size(); ++r) {
      const std::vector<TensorSpec> specs = optimizer_state_specs(runs_[r]);
      std::vector<std::vector<std::uint8_t>> tensors = replicas_.front()->read_state(r);
      for (std::size_t t = 0; t < specs.size(); ++t) state.push_back({specs[t], bytes.emplace_back(std::move(tensors[t])).data()});  // bytes stay where they are
    }
    const LoraAdapter adapter = current_adapter();
    StagedDirectory staged(dir, IfExists::replace);
    write_checkpoint(staged.path(), {describe_run(base_.spec, Compute::bf16, options_), step_, updates_}, state, &adapter, nullptr);
    staged.commit();
  });
}

void CudaTrainer::restore_checkpoint(const std::filesystem::path& dir) {
  alone([&] {
    const CheckpointState state = read_checkpoint_state(dir, describe_run(base_.spec, Compute::bf16, options_));
    // Everything that can fail comes before the first change.
    const std::vector<float> values = read_checkpoint_values(dir, &adapter_, nullptr);
    const SafetensorsFile file(dir / kOptimizerFile);
    std::vector<TensorSpec> all;
    for (const OptimizerRun& run : runs_)
      for (TensorSpec& spec : optimizer_state_specs(run)) all.push_back(std::move(spec));
    check_optimizer_state(file, all);
    for (const auto& replica : replicas_) {
      for (std::size_t r = 0; r < runs_.size(); ++r) {
        const std::vector<TensorSpec> specs = optimizer_state_specs(runs_[r]);
        for (std::size_t t = 0; t < specs.size(); ++t) replica->write_state(r, t, file.at(specs[t].name).data);
      }
      replica->write_values(values.data());
    }
    step_ = state.step;
    updates_ = state.updates;
    gradients_complete_ = false;
  });
}

}  // namespace engine::cuda
