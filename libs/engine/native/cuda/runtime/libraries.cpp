#include "cuda/runtime/libraries.h"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <sstream>

namespace engine::cuda {
namespace {

#ifndef ENGINE_CUDA_EMULATED
// The first of `names` that opens; never closed, as its code may be running when the process ends.
void* open_library(std::initializer_list<const char*> names) noexcept {
  const char* path = std::getenv("MEDMESH_CUDA_LIBRARY_PATH");
  std::istringstream folders(path != nullptr ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    for (const char* name : names)
      if (void* library = ::dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  for (const std::string prefix : {"", "/usr/local/cuda/lib64/"})
    for (const char* name : names)
      if (void* library = ::dlopen((prefix + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

template <class Function>
bool find(void* library, const char* name, Function& function) noexcept {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

std::optional<CublasLt> open_cublas_lt() noexcept {
  void* library = open_library({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"});
  if (library == nullptr) return std::nullopt;
  CublasLt lt{};
  const bool complete = find(library, "cublasLtGetVersion", lt.version) && find(library, "cublasLtCreate", lt.create) &&
                        find(library, "cublasLtDestroy", lt.destroy) && find(library, "cublasLtMatmulDescCreate", lt.operation_create) &&
                        find(library, "cublasLtMatmulDescDestroy", lt.operation_destroy) &&
                        find(library, "cublasLtMatmulDescSetAttribute", lt.operation_set) && find(library, "cublasLtMatrixLayoutCreate", lt.layout_create) &&
                        find(library, "cublasLtMatrixLayoutDestroy", lt.layout_destroy) &&
                        find(library, "cublasLtMatmulPreferenceCreate", lt.preference_create) &&
                        find(library, "cublasLtMatmulPreferenceDestroy", lt.preference_destroy) &&
                        find(library, "cublasLtMatmulPreferenceSetAttribute", lt.preference_set) &&
                        find(library, "cublasLtMatmulAlgoGetHeuristic", lt.heuristic) && find(library, "cublasLtMatmulAlgoCheck", lt.check) &&
                        find(library, "cublasLtMatmul", lt.multiply);
  if (!complete) return std::nullopt;
  return lt;
}

std::optional<Nccl> open_nccl() noexcept {
  ::setenv("NCCL_NVLS_ENABLE", "0", 0);
  void* library = open_library({"libnccl.so.2", "libnccl.so"});
  if (library == nullptr) return std::nullopt;
  Nccl table{};
  const bool complete = find(library, "ncclCommInitAll", table.init_all) && find(library, "ncclCommDestroy", table.destroy) &&
                        find(library, "ncclAllReduce", table.all_reduce) && find(library, "ncclBroadcast", table.broadcast) &&
                        find(library, "ncclGroupStart", table.group_start) && find(library, "ncclGroupEnd", table.group_end) &&
                        find(library, "ncclGetErrorString", table.error_string);
  if (!complete) return std::nullopt;
  return table;
}

std::optional<Nvml> open_nvml() noexcept {
  void* library = open_library({"libnvidia-ml.so.1"});
  if (library == nullptr) return std::nullopt;
  Nvml table{};
  const bool complete = find(library, "nvmlInit_v2", table.init) && find(library, "nvmlDeviceGetHandleByPciBusId_v2", table.device_by_pci_bus) &&
                        find(library, "nvmlDeviceGetMemoryInfo_v2", table.memory);
  if (!complete || table.init() != Nvml::kSuccess) return std::nullopt;
  return table;
}
#else
// The libraries need a device.
std::optional<CublasLt> open_cublas_lt() noexcept { return std::nullopt; }
std::optional<Nccl> open_nccl() noexcept { return std::nullopt; }
std::optional<Nvml> open_nvml() noexcept { return std::nullopt; }
#endif

}  // namespace

const CublasLt* cublas_lt() noexcept {
  static const std::optional<CublasLt> opened = open_cublas_lt();
  return opened ? &*opened : nullptr;
}

const Nccl* nccl() noexcept {
  static const std::optional<Nccl> opened = open_nccl();
  return opened ? &*opened : nullptr;
}

const Nvml* nvml() noexcept {
  static const std::optional<Nvml> opened = open_nvml();
  return opened ? &*opened : nullptr;
}

}  // namespace engine::cuda
