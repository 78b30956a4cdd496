// memory.h: owners of device memory and of pinned host memory.
//   Both are moved, never copied. Allocation throws oom, having taken nothing; sizes are in bytes and may be 0 (then data() is null).
//   Device memory is aligned to 256 bytes, which every operation may rely on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

inline constexpr std::int64_t kDeviceAlignment = 256;

// Bytes that an allocation of `bytes` takes from an arena.
constexpr std::int64_t aligned_bytes(std::int64_t bytes) { return (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment; }

// Contents undefined until written.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::int64_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() const noexcept { return data_; }
  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Host memory that the device can read and write in place, and that copies run from without staging.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(std::int64_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() const noexcept { return data_; }
  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Hands out pieces of one allocation, each aligned to kDeviceAlignment, in the order asked for. With a null base it only counts: run the same
// code once without memory to learn the exact size, and once with it.
class DeviceArena {
 public:
  DeviceArena() = default;
  DeviceArena(void* base, std::int64_t bytes) : base_(static_cast<std::byte*>(base)), bytes_(bytes) {}

  // Room for n values of T; null while counting. Throws internal when the arena is too small: its size was computed wrongly.
  template <class T>
  T* take(std::int64_t n) {
    return static_cast<T*>(take_bytes(n * static_cast<std::int64_t>(sizeof(T))));
  }
  void* take_bytes(std::int64_t bytes);

  std::int64_t used() const noexcept { return used_; }
  std::int64_t peak() const noexcept { return peak_; }
  // Gives back everything taken since used() was `mark`.
  void rewind(std::int64_t mark) noexcept { used_ = mark; }

 private:
  std::byte* base_ = nullptr;
  std::int64_t bytes_ = 0, used_ = 0, peak_ = 0;
};

// Copies; host memory that is not pinned is staged by the driver. Asynchronous on `stream`: keep both ends alive until it has run.
void copy_to_device(void* device, const void* host, std::int64_t bytes, cudaStream_t stream);
void copy_to_host(void* host, const void* device, std::int64_t bytes, cudaStream_t stream);
void copy_on_device(void* to, const void* from, std::int64_t bytes, cudaStream_t stream);
// Every byte of [data, data + bytes) becomes `value`.
void fill_bytes(void* data, int value, std::int64_t bytes, cudaStream_t stream);

// What the driver reports for the current device.
struct DeviceMemoryInfo {
  std::int64_t free_bytes, total_bytes;
};
DeviceMemoryInfo device_memory_info();
// Bytes of a device's memory in use, by whomever, with what the driver takes for this process, which opens the device. NVML's figure; without NVML the
// driver's. Waits for no work.
std::int64_t used_memory(int device);

}  // namespace engine::cuda
