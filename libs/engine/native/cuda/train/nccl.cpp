#include "cuda/train/nccl.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "core/error.h"

namespace engine::cuda {
namespace {

constexpr const char* kName = "libnccl.so.2";
constexpr int kFloat32 = 7, kSum = 0;  // ncclDataType_t, ncclRedOp_t

void* open_library() {
  if (const char* folder = std::getenv("MEDMESH_CUDA_LIBRARIES"); folder != nullptr && *folder != '\0')
    if (void* library = dlopen((std::filesystem::path(folder) / kName).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return dlopen(kName, RTLD_NOW | RTLD_LOCAL);
}

template <class Function>
bool find_symbol(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

const Nccl* Nccl::find() {
  static const std::optional<Nccl> found = []() -> std::optional<Nccl> {
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void* library = open_library();
    if (library == nullptr) return std::nullopt;
    Nccl nccl;
    const bool complete = find_symbol(library, "ncclCommInitAll", nccl.init_all_) && find_symbol(library, "ncclCommDestroy", nccl.destroy_) &&
                          find_symbol(library, "ncclGroupStart", nccl.group_start_) && find_symbol(library, "ncclGroupEnd", nccl.group_end_) &&
                          find_symbol(library, "ncclAllReduce", nccl.all_reduce_) && find_symbol(library, "ncclGetErrorString", nccl.error_string_);
    return complete ? std::optional(nccl) : std::nullopt;
  }();
  return found ? &*found : nullptr;
}

void Nccl::check(int status, const char* call) const {
  require(Code::internal, status == 0, call, " failed: ", error_string_(status));
}

std::vector<ncclComm_t> Nccl::open(std::span<const int> devices) const {
  std::vector<ncclComm_t> communicators(devices.size());
  check(init_all_(communicators.data(), static_cast<int>(devices.size()), devices.data()), "ncclCommInitAll");
  return communicators;
}

void Nccl::close(ncclComm_t communicator) const noexcept { destroy_(communicator); }
void Nccl::begin() const { check(group_start_(), "ncclGroupStart"); }
void Nccl::end() const { check(group_end_(), "ncclGroupEnd"); }

void Nccl::sum(float* values, std::int64_t n, ncclComm_t communicator, cudaStream_t stream) const {
  check(all_reduce_(values, values, static_cast<std::size_t>(n), kFloat32, kSum, communicator, stream), "ncclAllReduce");
}

}  // namespace engine::cuda
