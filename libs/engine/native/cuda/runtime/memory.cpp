#include "cuda/runtime/memory.h"

#include <algorithm>

#include "cuda/runtime/error.h"
#include "cuda/runtime/libraries.h"

namespace engine::cuda {

DeviceMemory::DeviceMemory(std::int64_t bytes) {
  require(bytes >= 0, "an allocation of ", bytes, " bytes");
  if (bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    fail(Code::oom, "the device cannot give ", bytes, " bytes; ", free, " of its ", total, " are free");
  }
  CUDA_CHECK(status);
  bytes_ = bytes;
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) (void)cudaFree(data_);
}

PinnedMemory::PinnedMemory(std::int64_t bytes) {
  require(bytes >= 0, "an allocation of ", bytes, " bytes");
  if (bytes == 0) return;
  const cudaError_t status = cudaHostAlloc(&data_, static_cast<std::size_t>(bytes), cudaHostAllocPortable | cudaHostAllocMapped);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    fail(Code::oom, "the host cannot pin ", bytes, " bytes");
  }
  CUDA_CHECK(status);
  bytes_ = bytes;
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

void* DeviceArena::take_bytes(std::int64_t bytes) {
  require(bytes >= 0, "a piece of ", bytes, " bytes");
  const std::int64_t at = used_;
  used_ += aligned_bytes(bytes);
  peak_ = std::max(peak_, used_);
  if (base_ == nullptr) return nullptr;
  require(Code::internal, used_ <= bytes_, "an arena of ", bytes_, " bytes is asked for its first ", used_);
  return base_ + at;
}

void copy_to_device(void* device, const void* host, std::int64_t bytes, cudaStream_t stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream));
}

void copy_to_host(void* host, const void* device, std::int64_t bytes, cudaStream_t stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream));
}

void copy_on_device(void* to, const void* from, std::int64_t bytes, cudaStream_t stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
}

void fill_bytes(void* data, int value, std::int64_t bytes, cudaStream_t stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemsetAsync(data, value, static_cast<std::size_t>(bytes), stream));
}

DeviceMemoryInfo device_memory_info() {
  std::size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

std::int64_t used_memory(int device) {
  int current = 0;
  CUDA_CHECK(cudaGetDevice(&current));
  CUDA_CHECK(cudaSetDevice(device));
  CUDA_CHECK(cudaFree(nullptr));  // what the driver takes for this process is there from now on
  const DeviceMemoryInfo info = device_memory_info();
  CUDA_CHECK(cudaSetDevice(current));
#ifndef ENGINE_CUDA_EMULATED
  char bus_id[32] = {};
  NvmlDevice of = nullptr;
  Nvml::Memory memory;
  if (const Nvml* library = nvml(); library != nullptr && cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device) == cudaSuccess &&
                                    library->device_by_pci_bus(bus_id, &of) == Nvml::kSuccess && library->memory(of, &memory) == Nvml::kSuccess)
    return static_cast<std::int64_t>(memory.used);
#endif
  return info.total_bytes - info.free_bytes;
}

}  // namespace engine::cuda
