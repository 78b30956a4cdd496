#include "cuda/train/cuda_trainer.h"

#include <array>
#include <cmath>

#include "cuda/train/trainer_case.h"

#ifdef ENGINE_CUDA_EMULATED
#include "cuda/runtime/emulation/cuda_api.h"
#endif

using namespace engine;
using namespace engine::cuda;
using namespace engine::cuda::test;
using engine::test::relative_error;
using engine::test::report_failure;

namespace {

constexpr std::array kFamilies{"llama3", "llama_bias_linear", "llama_dynamic", "mistral", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"};

struct OneStep {
  StepResult result;
  std::vector<float> gradients;
};

OneStep one_step(AnyTrainer& trainer, const std::vector<PackedRows>& micros) {
  const StepResult result = trainer.train_step(views(micros));
  return {result, gradients_of(trainer)};
}

std::vector<double> losses_of(AnyTrainer& trainer, const std::vector<PackedRows>& micros, int steps) {
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(trainer.train_step(views(micros)).loss);
  return losses;
}

// The emulation has one device, which may stand for two.
std::vector<int> two_devices() {
#ifdef ENGINE_CUDA_EMULATED
  return {0, 0};
#else
  if (device_count() < 2) throw engine::test::Skipped{"this machine has one GPU"};
  return {0, 1};
#endif
}

std::int64_t planned_bytes(const AnyTrainer& trainer) {
  const std::optional<TrainingPlan> plan = trainer.plan();
  return plan.value().device_bytes;
}

}  // namespace

TEST("loss and gradients are as close to exact ones as the CPU's bf16 mode is, for every family on NF4 and bf16 bases") {
  for (const char* name : kFamilies)
    for (const QuantizeOnLoad quantize : {QuantizeOnLoad::nf4, QuantizeOnLoad::none}) {
      const TempDir dir;
      const bool narrow = std::string_view(name) == "qwen2_yarn";  // heads of 8, which no kernel takes
      const GoldenCase c = narrow ? with_wide_heads(family(name), dir / "model") : family(name);
      const auto exact_model = load(c, Compute::f32, quantize), model = load(c, Compute::bf16, quantize);
      TrainerOptions options = options_of();
      write_random_adapter(model->spec(), *options.lora, dir / "adapter");
      options.initial_adapter_dir = dir / "adapter";
      const std::vector<PackedRows> micros = two_micros(c);
      Trainer exact(exact_model, options), rounded(model, options);
      const auto device = device_trainer(model, options);
      const OneStep e = one_step(exact, micros), r = one_step(rounded, micros), d = one_step(*device, micros);
      const double loss_error = std::abs(d.result.loss - e.result.loss) / e.result.loss;
      const double error = relative_error(d.gradients, e.gradients), cpu_error = relative_error(r.gradients, e.gradients);
      if (!(loss_error <= 4e-3)) report_failure(__FILE__, __LINE__, text(name, ": the loss is off by ", loss_error));
      if (!(error <= 2 * cpu_error)) report_failure(__FILE__, __LINE__, text(name, ": gradients are off by ", error, ", the CPU's by ", cpu_error));
      if (!(cosine(d.gradients, e.gradients) >= 0.993)) report_failure(__FILE__, __LINE__, text(name, ": gradients point elsewhere: ", cosine(d.gradients, e.gradients)));
    }
}

TEST("a head size that the device has no kernel for is refused by name") {
  for (const char* name : {"qwen2_window", "qwen2_yarn"}) CHECK_THROWS(unsupported, device_trainer(load(family(name)), options_of()));
}

TEST("twelve steps follow the CPU's losses, with dropout, noise and both optimizers") {
  const GoldenCase c = family("qwen3");
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit}) {
    TrainerOptions options = options_of(kind);
    options.lora->dropout = 0.1;
    options.neftune_alpha = 5;
    options.schedule = {ScheduleKind::linear, 2, 12, 2e-2};
    const auto model = load(c);
    Trainer cpu(model, options);
    const auto device = device_trainer(model, options);
    const std::vector<double> expected = losses_of(cpu, two_micros(c), 12), losses = losses_of(*device, two_micros(c), 12);
    CHECK(losses.back() < 0.98 * losses.front());
    for (std::size_t i = 0; i < losses.size(); ++i)
      if (!(std::abs(losses[i] - expected[i]) <= 1e-2 * expected[i])) report_failure(__FILE__, __LINE__, text("step ", i, ": loss ", losses[i], ", on the CPU ", expected[i]));
  }
}

TEST("two runs are the same bits, and so is one that was saved and continued") {
  const GoldenCase c = family("qwen3");
  TrainerOptions options = options_of();
  options.lora->dropout = 0.1;
  options.neftune_alpha = 5;
  const auto model = load(c);
  const std::vector<PackedRows> micros = two_micros(c);
  const auto one = device_trainer(model, options), other = device_trainer(model, options), continued = device_trainer(model, options);
  const TempDir dir;
  const std::vector<double> losses = losses_of(*one, micros, 6);
  CHECK(losses_of(*other, micros, 3) == std::vector(losses.begin(), losses.begin() + 3));
  other->save_checkpoint(dir / "checkpoint");
  continued->restore_checkpoint(dir / "checkpoint");
  CHECK_EQ(continued->step(), 3);
  CHECK(losses_of(*continued, micros, 3) == std::vector(losses.begin() + 3, losses.end()));
  CHECK(values_of(*continued) == values_of(*one));
  CHECK_EQ(continued->step(), 6);
}

TEST("a checkpoint of the CPU continues on the device, and one of the device on the CPU") {
  const GoldenCase c = family("llama3");
  const TrainerOptions options = options_of();
  const auto model = load(c);
  const std::vector<PackedRows> micros = two_micros(c);
  Trainer cpu(model, options);
  const auto device = device_trainer(model, options);
  const TempDir dir;
  losses_of(cpu, micros, 3);
  cpu.save_checkpoint(dir / "cpu");
  device->restore_checkpoint(dir / "cpu");
  CHECK(values_of(*device) == values_of(cpu));
  const double on_device = device->train_step(views(micros)).loss, on_cpu = cpu.train_step(views(micros)).loss;
  CHECK_CLOSE(on_device, on_cpu, 5e-3 * on_cpu);
  device->save_checkpoint(dir / "device");
  Trainer again(model, options);
  again.restore_checkpoint(dir / "device");
  CHECK_EQ(again.step(), 4);
  CHECK(values_of(again) == values_of(*device));
}

TEST("whatever is kept, computed again, put into host memory or decoded ahead, the gradients are the same bits") {
  for (const char* name : {"qwen3", "gemma2"}) {
    const TempDir dir;
    const GoldenCase c = deepened(family(name), 5, dir / "model");
    const auto model = load(c);
    TrainerOptions options = options_of();
    options.lora->dora = std::string_view(name) == "qwen3";
    if (std::string_view(name) == "gemma2") {  // chosen layers, of other ranks here and there; nothing below the first of them is kept
      options.lora->layers = {1, 3, 4};
      options.lora->rank_pattern = {{"v_proj", 20}, {"layers.3.mlp.up_proj", 2}};
    }
    write_random_adapter(model->spec(), *options.lora, dir / "adapter");
    options.initial_adapter_dir = dir / "adapter";
    options.schedule.learning_rate = 0;
    const LoraAdapter adapter(model->spec(), *options.lora);
    const Geometry geometry = make_geometry(model->spec(), adapter);
    const BaseFormat format = base_format(model->weights());
    const std::vector<OptimizerRun> runs = optimizer_runs(options.optimizer, trainable_tensors(adapter));
    const RunShape shape{model->spec(), geometry, format, runs, adapter};
    const std::vector<PackedRows> micros = two_micros(c);  // scratch holds the end of the first when the second begins
    std::vector<float> expected;
    std::int64_t used = 0;
    const std::vector<MemoryChoice> choices = memory_choices(shape, 256);
    for (std::size_t i = 0; i < choices.size(); i += 4) {  // each kind of choice among them; all of them take minutes in the emulation
      const MemoryChoice& choice = choices[i];
      const std::int64_t bytes = measure(shape, choice, 256).device();
      if (bytes <= used) continue;  // a better choice takes as little
      used = bytes;
      options.memory_budget = bytes;
      const auto trainer = device_trainer(model, options);
      CHECK(planned_bytes(*trainer) <= bytes);
      const OneStep step = one_step(*trainer, micros);
      if (expected.empty()) expected = step.gradients;
      if (step.gradients != expected) {
        const TrainingPlan plan = *trainer->plan();
        report_failure(__FILE__, __LINE__, text(name, ": other gradients with ", plan.kept_layers, " layers kept, ", plan.partly_kept_layers, " partly, ", plan.offloaded_layers,
                                                " offloaded, ", plan.decoded_layers, " decoded: off by ", relative_error(step.gradients, expected)));
      }
    }
  }
}

TEST("an evaluation is the loss of a step without dropout, and changes neither weights nor gradients") {
  const GoldenCase c = family("gemma3");
  const auto trainer = device_trainer(load(c), options_of());
  const std::vector<PackedRows> micros = two_micros(c);
  const double evaluated = trainer->evaluate(views(micros)).loss;
  const OneStep step = one_step(*trainer, micros);
  CHECK_EQ(evaluated, step.result.loss);
  const std::vector<float> values = values_of(*trainer);
  trainer->evaluate(views(micros));
  CHECK(values_of(*trainer) == values);
  CHECK(gradients_of(*trainer) == step.gradients);
}

TEST("a cancelled step leaves values, step and random state as they were") {
  const GoldenCase c = family("mistral");
  const auto model = load(c);
  TrainerOptions options = options_of();
  options.lora->dropout = 0.1;
  const auto trainer = device_trainer(model, options), undisturbed = device_trainer(model, options);
  const std::vector<PackedRows> micros = two_micros(c);
  trainer->train_step(views(micros));
  undisturbed->train_step(views(micros));
  CancelFlag flag;
  flag.requested = true;
  CHECK_THROWS(cancelled, trainer->train_step(views(micros), &flag));
  CHECK_EQ(trainer->step(), 1);
  CHECK_THROWS(invalid, gradients_of(*trainer));
  CHECK(losses_of(*trainer, micros, 2) == losses_of(*undisturbed, micros, 2));
  CHECK(values_of(*trainer) == values_of(*undisturbed));
}

TEST("a longer micro-batch than planned for is planned anew, or refused with everything as it was") {
  const GoldenCase c = family("llama3");
  const auto model = load(c);
  TrainerOptions options = options_of();
  PackedRows lengthy;
  for (int i = 0; i < 12; ++i) lengthy.add(c.sequences[0], 0);
  const std::vector<PackedRows> longer{lengthy}, shorter = two_micros(c);
  CHECK(lengthy.ids.size() > 256);
  const auto roomy = device_trainer(model, options);
  const std::int64_t before = roomy->plan()->tokens;
  roomy->train_step(views(longer));
  CHECK(roomy->plan()->tokens > before);
  options.memory_budget = planned_bytes(*device_trainer(model, options));
  const auto tight = device_trainer(model, options), same = device_trainer(model, options);
  PackedRows enormous;
  for (int i = 0; i < 200; ++i) enormous.add(c.sequences[0], 0);
  CHECK_THROWS(oom, tight->train_step(views({enormous})));
  CHECK(losses_of(*tight, shorter, 2) == losses_of(*same, shorter, 2));
}

TEST("two replicas that share the micro-batches make the step of one") {
  const GoldenCase c = family("qwen3");
  const auto model = load(c);
  const TrainerOptions options = options_of();
  const std::vector<PackedRows> micros = two_micros(c);
  const std::vector<int> both = two_devices();
  const auto one = device_trainer(model, options), two = device_trainer(model, options, both);
  for (int i = 0; i < 3; ++i) {
    const OneStep a = one_step(*one, micros), b = one_step(*two, micros);
    CHECK_CLOSE(a.result.loss, b.result.loss, 2e-3 * a.result.loss);
    if (i == 0) CHECK_CLOSE(relative_error(b.gradients, a.gradients), 0, 1e-6);
  }
  const TempDir dir;
  two->save_checkpoint(dir / "checkpoint");
  const auto again = device_trainer(model, options, both);
  again->restore_checkpoint(dir / "checkpoint");
  CHECK(losses_of(*again, micros, 2) == losses_of(*two, micros, 2));
}

#ifdef ENGINE_CUDA_EMULATED
TEST("a run allocates what its plan says, and a budget one byte below the least is refused before anything is taken") {
  const GoldenCase c = family("llama3");
  const auto model = load(c);
  TrainerOptions options = options_of();
  options.memory_budget = 1;
  const std::int64_t before = emulation::allocated_bytes();
  emulation::reset_peak();
  std::int64_t least = 0;
  try {
    device_trainer(model, options);
  } catch (const Error& error) {
    CHECK(error.code() == Code::oom);
    CHECK(error.message().find("needs at least") != std::string::npos);
  }
  CHECK_EQ(emulation::peak_bytes(), before);
  {
    options.memory_budget = std::int64_t{1} << 30;
    emulation::reset_peak();
    const auto trainer = device_trainer(model, options);
    trainer->train_step(views(two_micros(c)));
    least = planned_bytes(*trainer);
    // Planned for, but taken only where there is a library to use it.
    const std::int64_t unused = Gemm().library() == "mma" ? 2 * Gemm::workspace_bytes() : 0;
    CHECK_EQ(emulation::peak_bytes() - before + unused, least);
  }
  CHECK_EQ(emulation::allocated_bytes(), before);
  options.memory_budget = least;
  CHECK_EQ(planned_bytes(*device_trainer(model, options)), least);
}

TEST("memory that the device does not have after all is oom, and the process trains on with less") {
  const GoldenCase c = family("llama3");
  const auto model = load(c);
  TrainerOptions options = options_of();
  options.memory_budget = std::int64_t{4} << 30;
  const std::int64_t before = emulation::allocated_bytes();
  emulation::set_memory_limit(before + (1 << 20));
  CHECK_THROWS(oom, device_trainer(model, options));
  emulation::set_memory_limit(std::int64_t{16} << 30);
  CHECK_EQ(emulation::allocated_bytes(), before);
  CHECK(std::isfinite(device_trainer(model, options)->train_step(views(two_micros(c))).loss));
}
#endif
