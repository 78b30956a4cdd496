// backend.h: trainers and runners of other devices than the CPU, from a library of their own that is looked for when they are first asked for.
//   The library lies beside the code that loads it (engine.node, a program) or in the folder `cuda` beside that one's, where build:cuda puts it, or is named
//   by MEDMESH_ENGINE_CUDA_LIBRARY. It shares C++ types with its loader, so both must come from the same headers and compiler: the digest of those is
//   compared before anything else is called. Where the library, the driver or a GPU is missing, there are no such devices; that is never a failure by itself.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/exec.h"
#include "infer/generator.h"
#include "infer/runner.h"
#include "model/model.h"
#include "train/any_trainer.h"

namespace engine {

// The frozen base that a trainer starts from, or that generates. `owner` keeps what the references point to alive.
struct TrainingBase {
  std::shared_ptr<const void> owner;
  const ModelSpec& spec;
  const DecoderWeights& weights;  // in host memory
};

class __attribute__((visibility("default"))) Backend {
 public:
  virtual ~Backend() = default;
  virtual std::vector<DeviceInfo> devices() const = 0;
  // Bytes of the device's memory in use now, by whomever; may be asked while a trainer works. NVML tells where it is there; else the driver, which opens
  // the device for that.
  virtual std::int64_t used_bytes(int device) const = 0;
  // One trainer over one device, or several that share the micro-batches of each step. Throws invalid for options out of range or a device that
  // devices() does not list, unsupported for what this back end does not train, oom when the memory budget is too small: before anything is allocated.
  virtual std::unique_ptr<AnyTrainer> create_trainer(const TrainingBase& base, std::span<const int> devices, const TrainerOptions& options) const = 0;
  // Generation on one device. Throws unsupported for a shape that it does not run, oom when the memory budget is too small: before anything is allocated.
  virtual std::unique_ptr<Runner> create_runner(const TrainingBase& base, int device, const RunnerOptions& options) const = 0;
};

// What a back end's library exports, with C linkage.
inline constexpr const char* kBackendAbiSymbol = "engine_backend_abi";  // const char*(): backend_abi() as the library was built
inline constexpr const char* kBackendSymbol = "engine_backend";         // const engine::Backend*(): never null; lives as long as the process
// Digest of the headers and the compiler that this code was built with.
const char* backend_abi() noexcept;

// A back end, or the reason there is none.
struct LoadedBackend {
  const Backend* backend = nullptr;
  std::string reason;
};
// Opens the library at `path`. It stays loaded.
LoadedBackend load_backend(const std::filesystem::path& path);
// The CUDA back end, looked for once.
const LoadedBackend& cuda_backend();

// The CPU, then every other device.
std::vector<DeviceInfo> list_devices();

// Throws unsupported, saying why, when there is no CUDA device of this number.
void require_cuda_device(int index);

// A trainer and where it runs. `no_gpu_because`: what a GPU of this machine, which a free choice would have taken, does not train; else empty.
struct PlacedTrainer {
  std::unique_ptr<AnyTrainer> trainer;
  DeviceChoice device;
  std::string no_gpu_because;
};

// The trainer for a model on a device. `automatic` takes the first GPU if it trains what the options say (an adapter, in bf16, of a shape that it
// computes), else the CPU. Throws unsupported when there is no such device, saying why, and what the trainers' constructors throw.
PlacedTrainer create_trainer(std::shared_ptr<Model> model, const DeviceChoice& device, const TrainerOptions& options, const LoadedBackend& cuda = cuda_backend());

// What a caller may say of a generator; the rest is the device's.
struct GenerationSettings {
  std::int64_t max_running = 64;        // sequences at once
  std::int64_t memory_budget = 0;       // bytes of a GPU's memory, weights included; 0: what is free
  std::optional<SumOrder> order;        // absent: on the CPU the same for any rows, on a GPU the fastest
  std::function<void()> on_step = nullptr;  // GeneratorOptions
  std::int64_t most_growth = 1;         // GeneratorOptions
};

// The generator for a model on a device. `automatic` takes the first GPU if the model computes in bf16 and the GPU runs its shape, else the CPU.
// Throws unsupported when there is no such device, and what the runners throw.
std::unique_ptr<Generator> create_generator(std::shared_ptr<Model> model, const DeviceChoice& device, const GenerationSettings& settings);

}  // namespace engine
