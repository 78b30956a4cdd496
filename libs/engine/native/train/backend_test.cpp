#include "train/backend.h"

#include <array>
#include <fstream>

#include "core/test.h"
#include "infer/generation_case.h"
#include "model/golden_case.h"
#include "train/trainer.h"

using namespace engine;
using namespace engine::test;

namespace {

std::shared_ptr<Model> tiny_model(Compute compute) {
  return std::make_shared<Model>(family_goldens().front().dir, LoadOptions{QuantizeOnLoad::none, compute, 1});
}

TrainerOptions lora_options() {
  TrainerOptions options;
  options.lora = LoraConfig{8, 16, 0, false, {"q_proj"}, ""};
  options.schedule.learning_rate = 1e-3;
  return options;
}

}  // namespace

TEST("a library that is missing, is no library, or is no back end means no devices, with the reason") {
  const TempDir dir;
  const LoadedBackend missing = load_backend(dir / "libengine_cuda.so");
  CHECK(missing.backend == nullptr);
  CHECK(missing.reason.find("libengine_cuda.so is not at") == 0);
  std::ofstream(dir / "text.so") << "not a library";
  const LoadedBackend text_file = load_backend(dir / "text.so");
  CHECK(text_file.backend == nullptr);
  CHECK(text_file.reason.find("could not be loaded") != std::string::npos);
}

TEST("the CPU is always the first device") {
  const std::vector<DeviceInfo> devices = list_devices();
  CHECK(!devices.empty());
  CHECK(devices.front().kind == DeviceKind::cpu && devices.front().threads >= 1 && devices.front().memory_bytes > 0);
}

TEST("a GPU that is not there is refused by name, and automatic choice falls back to the CPU") {
  const std::shared_ptr<Model> model = tiny_model(Compute::bf16);
  CHECK_THROWS(unsupported, create_trainer(model, parse_device("cuda:63"), lora_options()));
  TrainerOptions full = lora_options();
  full.lora.reset();
  CHECK(dynamic_cast<Trainer*>(create_trainer(model, parse_device("auto"), full).trainer.get()) != nullptr);
  CHECK(dynamic_cast<Trainer*>(create_trainer(tiny_model(Compute::f32), parse_device("auto"), lora_options()).trainer.get()) != nullptr);
  CHECK(dynamic_cast<Trainer*>(create_trainer(model, parse_device("cpu"), lora_options()).trainer.get()) != nullptr);
}

TEST("automatic choice takes a GPU that trains what is asked for; where it does not, the CPU, with the reason, while a GPU asked for by name refuses") {
  const LoadedBackend gpu = load_backend(ENGINE_EMULATED_BACKEND);
  const DeviceChoice automatic = parse_device("auto");
  const PlacedTrainer taken = create_trainer(tiny_model(Compute::bf16), automatic, lora_options(), gpu);
  CHECK(dynamic_cast<Trainer*>(taken.trainer.get()) == nullptr);
  CHECK(taken.device.kind == DeviceKind::cuda && taken.device.index == 0 && !taken.device.automatic);
  CHECK_EQ(taken.no_gpu_because, "");

  const auto narrow = std::make_shared<Model>(std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/qwen2_window", LoadOptions{QuantizeOnLoad::none, Compute::bf16, 1});  // heads of 8
  const PlacedTrainer refused = create_trainer(narrow, automatic, lora_options(), gpu);
  CHECK(dynamic_cast<Trainer*>(refused.trainer.get()) != nullptr);
  CHECK(refused.device.kind == DeviceKind::cpu);
  CHECK(refused.no_gpu_because.find("head_dim") != std::string::npos);
  CHECK_THROWS(unsupported, create_trainer(narrow, parse_device("cuda"), lora_options(), gpu));

  TrainerOptions full = lora_options();
  full.lora.reset();
  CHECK(create_trainer(tiny_model(Compute::bf16), automatic, full, gpu).no_gpu_because.find("full-parameter training") == 0);
}

TEST("the emulated back end is found by its path, lists its device and trains as the CPU does") {
  const LoadedBackend loaded = load_backend(ENGINE_EMULATED_BACKEND);
  if (loaded.backend == nullptr) throw Error(Code::internal, loaded.reason);
  const std::vector<DeviceInfo> devices = loaded.backend->devices();
  CHECK_EQ(devices.size(), 1u);
  CHECK(devices.front().kind == DeviceKind::cuda && devices.front().memory_bytes > 0);
  const std::shared_ptr<Model> model = tiny_model(Compute::bf16);
  TrainerOptions options = lora_options();
  options.memory_budget = std::int64_t{1} << 30;
  const std::vector<std::uint32_t> ids{3, 5, 7, 11, 13, 17}, offsets{0, 6};
  const std::vector<std::uint8_t> mask(ids.size(), 1);
  const std::vector<MicroBatch> micros{{ids, mask, offsets}};
  const auto device = loaded.backend->create_trainer({model, model->spec(), model->weights()}, std::array{0}, options);
  Trainer cpu(model, options);
  const StepResult on_device = device->train_step(micros), on_cpu = cpu.train_step(micros);
  CHECK_CLOSE(on_device.loss, on_cpu.loss, 5e-3 * on_cpu.loss);
  CHECK_EQ(on_device.trainable_tokens, on_cpu.trainable_tokens);
  CHECK(device->plan()->device_bytes > 0);
  CHECK_THROWS(invalid, loaded.backend->create_trainer({model, model->spec(), model->weights()}, std::array{7}, options));  // thrown in one library, caught in another
}

TEST("the emulated back end generates what the CPU does") {
  const LoadedBackend loaded = load_backend(ENGINE_EMULATED_BACKEND);
  if (loaded.backend == nullptr) throw Error(Code::internal, loaded.reason);
  const std::shared_ptr<Model> model = tiny_model(Compute::bf16);
  const TrainingBase base{model, model->spec(), model->weights()};
  const RunnerOptions options{.max_rows = 32, .max_sequences = 2, .memory_budget = std::int64_t{256} << 20};
  Generator device(loaded.backend->create_runner(base, 0, options), {.max_running = 2, .prefill_tokens = 16}), cpu(model, {});
  CHECK(device.device().starts_with("cuda:0 ("));
  CHECK(device.memory_table().find("keys and values") != std::string::npos);
  const Outcome there = start(device, {3, 5, 7, 11}, greedy(4)).get(), here = start(cpu, {3, 5, 7, 11}, greedy(4)).get();
  CHECK(there.ids() == here.ids());
  CHECK_THROWS(invalid, loaded.backend->create_runner(base, 7, options));
  CHECK_THROWS(oom, loaded.backend->create_runner(base, 0, {.max_rows = 32, .max_sequences = 2, .memory_budget = 1000}));
}

TEST("a generator for a GPU that is not there is refused by name, and automatic choice falls back to the CPU") {
  const std::shared_ptr<Model> model = tiny_model(Compute::bf16);
  CHECK_THROWS(unsupported, create_generator(model, parse_device("cuda:63"), {}));
  CHECK(create_generator(model, parse_device("cpu"), {})->device().starts_with("cpu ("));
  CHECK(create_generator(tiny_model(Compute::f32), parse_device("auto"), {})->device().starts_with("cpu ("));
}
