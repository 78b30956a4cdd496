// stream.h: owners of streams, events and captured graphs, and what a device is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

enum class Priority : std::uint8_t { normal, low };

// A queue of work. Converts to the handle that operations take.
class Stream {
 public:
  explicit Stream(Priority priority = Priority::normal);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const noexcept { return handle_; }  // NOLINT: operations take the handle
  void synchronize() const;                                     // throws what failed since the last time

 private:
  cudaStream_t handle_ = nullptr;
};

// A point in a stream. Timing is off unless asked for: recording is then cheaper.
class Event {
 public:
  enum class Timing : std::uint8_t { off, on };
  explicit Event(Timing timing = Timing::off);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) const;
  void wait(cudaStream_t stream) const;  // work given to `stream` from now on runs after the point last recorded
  void synchronize() const;              // the host waits
  bool done() const;                     // whether that point has been reached
  double milliseconds_since(const Event& start) const;  // both timed, both reached

 private:
  cudaEvent_t handle_ = nullptr;
};

// The work of one captured call, which replays in one launch. Arguments are those of the capture: what changes lives in device memory.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  // Runs `work`, which gives its work to `stream` (and to streams that wait for it), without executing it. Nothing stays captured when it throws.
  static Graph capture(cudaStream_t stream, const std::function<void()>& work);
  bool empty() const noexcept { return handle_ == nullptr; }
  void launch(cudaStream_t stream) const;

 private:
  cudaGraphExec_t handle_ = nullptr;
};

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;          // compute capability
  int multiprocessors = 0;
  std::int64_t shared_bytes = 0;     // most a block can have
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;
};

// 0 when there is no driver or no device; never throws for that.
int device_count() noexcept;
DeviceInfo device_info(int device);
// The device of this thread's later calls.
void use_device(int device);
// Multiprocessors of the current device, read once for each device.
int multiprocessors();
// The most shared memory a block can have on it.
std::int64_t block_shared_bytes();
// Whether the current device can begin a kernel before the previous one has ended (compute capability 9.0; launch.h).
bool can_chain();
// Whether the current device runs the products of warpgroup.h, and this library has its code for them.
bool has_warpgroup_products();

}  // namespace engine::cuda
