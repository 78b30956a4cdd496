// backend.cpp: what libengine_cuda.so gives to the engine (train/backend.h).
#include "train/backend.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/infer/cuda_runner.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "cuda/train/cuda_trainer.h"

namespace engine::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  std::vector<engine::DeviceInfo> devices() const override {
    std::vector<engine::DeviceInfo> devices;
    const int count = device_count();
    for (int i = 0; i < count; ++i) {
      const DeviceInfo info = device_info(i);
      devices.push_back({DeviceKind::cuda, i, info.name, text("sm_", info.major, info.minor), info.multiprocessors, info.memory_bytes});
    }
    return devices;
  }

  std::int64_t used_bytes(int device) const override {
    require(device >= 0 && device < device_count(), "there is no cuda:", device);
    return used_memory(device);
  }

  std::unique_ptr<AnyTrainer> create_trainer(const TrainingBase& base, std::span<const int> devices, const TrainerOptions& options) const override {
    const int count = device_count();
    for (std::size_t i = 0; i < devices.size(); ++i) {
      require(devices[i] >= 0 && devices[i] < count, "there is no cuda:", devices[i], "; this machine has ", count, " CUDA devices");
      require(std::count(devices.begin(), devices.end(), devices[i]) == 1, "cuda:", devices[i], " is named twice");
    }
    return std::make_unique<CudaTrainer>(base, devices, options);
  }

  std::unique_ptr<Runner> create_runner(const TrainingBase& base, int device, const RunnerOptions& options) const override {
    require(device >= 0 && device < device_count(), "there is no cuda:", device, "; this machine has ", device_count(), " CUDA devices");
    return std::make_unique<CudaRunner>(base, device, options);
  }
};

}  // namespace
}  // namespace engine::cuda

extern "C" {

__attribute__((visibility("default"))) const char* engine_backend_abi() { return engine::backend_abi(); }

__attribute__((visibility("default"))) const engine::Backend* engine_backend() {
  static const engine::cuda::CudaBackend backend;
  return &backend;
}

}  // extern "C"
