#include "train/backend.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "core/cpu_info.h"
#include "core/error.h"
#include "train/setup.h"
#include "train/trainer.h"

#ifndef ENGINE_ABI_DIGEST
#define ENGINE_ABI_DIGEST "dev"
#endif

namespace engine {
namespace {

constexpr const char* kLibraryVariable = "MEDMESH_ENGINE_CUDA_LIBRARY";
// Of one step: what keeps a GPU's products busy, and beside others' next tokens a step of about 20 ms for a 7B model.
constexpr std::int64_t kGpuPrefillTokens = 2048, kGpuTokensBeside = 256;
constexpr const char* kLibraryName = "libengine_cuda.so";

// The file this code was loaded from.
std::filesystem::path own_file() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_file), &info) == 0 || info.dli_fname == nullptr) return {};
  return info.dli_fname;
}

std::filesystem::path library_path() {
  if (const char* named = std::getenv(kLibraryVariable); named != nullptr && *named != '\0') return named;
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::absolute(own_file(), ignored).parent_path(), beside = folder / kLibraryName;
  const std::filesystem::path built = folder.parent_path() / "cuda" / kLibraryName;  // of build/release and build/cuda
  return !std::filesystem::exists(beside, ignored) && std::filesystem::exists(built, ignored) ? built : beside;
}

std::size_t gpu_count(const LoadedBackend& cuda) { return cuda.backend == nullptr ? 0 : cuda.backend->devices().size(); }

void require_device(int index, const LoadedBackend& cuda) {
  const std::size_t count = gpu_count(cuda);
  if (count == 0) fail(Code::unsupported, "there is no CUDA device: ", cuda.backend == nullptr ? cuda.reason : "the driver shows none");
  require(Code::unsupported, static_cast<std::size_t>(index) < count, "there is no cuda:", index, "; this machine has ", count, " CUDA device", count == 1 ? "" : "s");
}

// Throws unsupported, saying what a GPU does not train.
std::unique_ptr<AnyTrainer> create_on_gpu(const std::shared_ptr<Model>& model, int index, const TrainerOptions& options, const LoadedBackend& cuda) {
  require(Code::unsupported, options.lora.has_value(), "full-parameter training runs on the CPU only; train an adapter, or use device cpu");
  require(Code::unsupported, model->exec().compute == Compute::bf16, "training on a GPU computes in bf16; load the model with compute bf16, or use device cpu");
  const std::array chosen{index};
  return cuda.backend->create_trainer({model, model->spec(), model->weights()}, chosen, options);
}

}  // namespace

const char* backend_abi() noexcept { return ENGINE_ABI_DIGEST; }

LoadedBackend load_backend(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {nullptr, text(path.filename().string(), " is not at ", path.string(), "; build it, or name it by ", kLibraryVariable)};
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return {nullptr, text(path.string(), " could not be loaded: ", dlerror())};
  const auto abi = reinterpret_cast<const char* (*)()>(dlsym(library, kBackendAbiSymbol));
  const auto create = reinterpret_cast<const Backend* (*)()>(dlsym(library, kBackendSymbol));
  if (abi == nullptr || create == nullptr) {
    dlclose(library);
    return {nullptr, text(path.string(), " is not a back end of this engine")};
  }
  if (std::string_view(abi()) != backend_abi()) {
    dlclose(library);
    return {nullptr, text(path.string(), " was built from other sources than this engine; build both together")};
  }
  return {create(), ""};
}

const LoadedBackend& cuda_backend() {
  static const LoadedBackend loaded = load_backend(library_path());
  return loaded;
}

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> devices{{DeviceKind::cpu, 0, cpu_name(), std::string(isa_name(usable_isa())), available_threads(), available_memory_bytes()}};
  if (const Backend* cuda = cuda_backend().backend)
    for (DeviceInfo& device : cuda->devices()) devices.push_back(std::move(device));
  return devices;
}

void require_cuda_device(int index) { require_device(index, cuda_backend()); }

PlacedTrainer create_trainer(std::shared_ptr<Model> model, const DeviceChoice& device, const TrainerOptions& wanted, const LoadedBackend& cuda) {
  const TrainerOptions options = with_initial_patterns(wanted);
  std::string no_gpu_because;
  if (device.automatic ? gpu_count(cuda) > 0 : device.kind == DeviceKind::cuda) {
    require_device(device.index, cuda);
    try {
      return {create_on_gpu(model, device.index, options, cuda), {false, DeviceKind::cuda, device.index}, ""};
    } catch (const Error& error) {
      if (!device.automatic || error.code() != Code::unsupported) throw;
      no_gpu_because = error.what();
    }
  }
  return {std::make_unique<Trainer>(std::move(model), options), {false, DeviceKind::cpu, 0}, no_gpu_because};
}

std::unique_ptr<Generator> create_generator(std::shared_ptr<Model> model, const DeviceChoice& device, const GenerationSettings& settings) {
  const bool bf16 = model->exec().compute == Compute::bf16;
  GeneratorOptions options;
  options.max_running = settings.max_running;
  options.on_step = settings.on_step;
  options.most_growth = settings.most_growth;
  const auto on_cpu = [&] {
    options.order = settings.order.value_or(SumOrder::same_for_any_rows);
    return std::make_unique<Generator>(model, options);
  };
  if (device.automatic ? gpu_count(cuda_backend()) == 0 || !bf16 : device.kind == DeviceKind::cpu) return on_cpu();
  require_cuda_device(device.index);
  require(Code::unsupported, bf16, "a GPU generates in bf16; load the model with compute bf16, or use device cpu");
  RunnerOptions runner;
  runner.max_rows = settings.max_running + kGpuPrefillTokens;
  runner.max_sequences = settings.max_running;
  runner.mixed_rows = kGpuTokensBeside;
  runner.most_mixed_rows = std::min(kGpuTokensBeside * settings.most_growth, kGpuPrefillTokens);
  runner.memory_budget = settings.memory_budget;
  runner.order = settings.order.value_or(SumOrder::fastest);
  runner.prepare = true;
  std::unique_ptr<Runner> made;
  try {
    made = cuda_backend().backend->create_runner({model, model->spec(), model->weights()}, device.index, runner);
  } catch (const Error& error) {
    if (!device.automatic || error.code() != Code::unsupported) throw;
    return on_cpu();
  }
  options.order = runner.order;
  options.prefill_tokens = kGpuPrefillTokens;
  options.tokens_beside = kGpuTokensBeside;
  return std::make_unique<Generator>(std::move(made), options);
}

}  // namespace engine
