// device_buffer.h: device memory of one type that is filled from and read back to vectors: for tests, benchmarks and tables made once. Each call waits.
#pragma once

#include <vector>

#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {

template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::int64_t n) : memory_(n * static_cast<std::int64_t>(sizeof(T))), size_(n) {}
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(static_cast<std::int64_t>(values.size())) {
    const Stream stream;
    copy_to_device(data(), values.data(), memory_.bytes(), stream);
    stream.synchronize();
  }

  T* data() const noexcept { return memory_.as<T>(); }
  std::int64_t size() const noexcept { return size_; }

  std::vector<T> read(cudaStream_t after) const {
    std::vector<T> values(static_cast<std::size_t>(size_));
    const Event done;
    copy_to_host(values.data(), data(), memory_.bytes(), after);
    done.record(after);
    done.synchronize();
    return values;
  }

 private:
  DeviceMemory memory_;
  std::int64_t size_ = 0;
};

}  // namespace engine::cuda
