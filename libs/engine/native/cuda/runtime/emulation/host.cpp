// host.cpp: streams, events, graphs and memory of the emulated device.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/runtime/emulation/execution.h"

namespace {

using Work = std::function<void()>;

struct Marker {
  CUstream_st* stream;
  bool reached = false;
  std::chrono::steady_clock::time_point when{};
};

}  // namespace

struct CUgraph_st {
  std::vector<Work> work;
  CUstream_st* origin = nullptr;
  std::set<CUstream_st*> members;
  std::set<CUstream_st*> unjoined;  // forked streams with work that the origin has not waited for
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};
struct CUstream_st {
  std::deque<Work> queue;
  CUgraph_st* capture = nullptr;
};
struct CUevent_st {
  std::shared_ptr<Marker> marker;
  CUgraph_st* capture = nullptr;
  CUstream_st* captured_in = nullptr;
};

namespace engine::cuda::emulation {
namespace {

constexpr int kPoison = 0xff;

struct Allocation {
  void* mapping;
  std::size_t mapped_bytes;
  std::size_t bytes;
};

struct Device {
  std::recursive_mutex mutex;
  std::set<CUstream_st*> streams;
  CUstream_st default_stream;
  std::map<void*, Allocation> device_memory, host_memory;
  std::int64_t limit = std::int64_t{16} << 30, allocated = 0, peak = 0;
  int captures = 0;
  cudaError_t sticky = cudaSuccess, last = cudaSuccess;
  std::string fault;
};

Device& device() {
  static Device instance;
  return instance;
}

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t result(cudaError_t status) {
  Device& d = device();
  if (d.sticky != cudaSuccess) status = d.sticky;
  if (status != cudaSuccess && status != cudaErrorNotReady) d.last = status;
  return status;
}

CUstream_st& stream_of(cudaStream_t stream) { return stream != nullptr ? *stream : device().default_stream; }

void run_one(CUstream_st& stream) {
  Device& d = device();
  const Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (d.sticky != cudaSuccess) return;
  try {
    work();
  } catch (const std::exception& error) {
    d.sticky = cudaErrorLaunchFailure;
    d.fault = error.what();
    std::fprintf(stderr, "emulated device: %s\n", error.what());
  }
}

void run_until(const std::shared_ptr<Marker>& marker) {
  while (!marker->reached && !marker->stream->queue.empty()) run_one(*marker->stream);
}

void drain(CUstream_st& stream) {
  while (!stream.queue.empty()) run_one(stream);
}

void drain_all() {
  for (CUstream_st* stream : device().streams) drain(*stream);
  drain(device().default_stream);
}

// Whole pages that end at one that cannot be touched; the bytes up to it that nobody asked for are poisoned too, and looked at again.
cudaError_t allocate(std::map<void*, Allocation>& owner, void** data, std::size_t bytes, std::size_t alignment) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t room = (bytes + page - 1) / page * page;
  void* mapping = ::mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return cudaErrorMemoryAllocation;
  ::mprotect(static_cast<std::byte*>(mapping) + room, page, PROT_NONE);
  std::memset(mapping, kPoison, room);
  auto* at = static_cast<std::byte*>(mapping) + (room - bytes) / alignment * alignment;
  owner[at] = {mapping, room + page, bytes};
  *data = at;
  return cudaSuccess;
}

cudaError_t release(std::map<void*, Allocation>& owner, void* data) {
  const auto found = owner.find(data);
  if (found == owner.end()) return cudaErrorInvalidValue;
  const Allocation& a = found->second;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto* low = static_cast<const std::byte*>(a.mapping);
  const auto* high = low + a.mapped_bytes - page;
  const auto* begin = static_cast<const std::byte*>(data);
  const auto written = [](std::byte b) { return b != std::byte{kPoison}; };
  if (std::any_of(low, begin, written) || std::any_of(begin + a.bytes, high, written)) {
    device().sticky = cudaErrorIllegalAddress;
    device().fault = "memory beside an allocation of " + std::to_string(a.bytes) + " bytes was written";
    std::fprintf(stderr, "emulated device: %s\n", device().fault.c_str());
  }
  ::munmap(a.mapping, a.mapped_bytes);
  owner.erase(found);
  return cudaSuccess;
}

}  // namespace

cudaError_t enqueue(cudaStream_t handle, Work work) {
  const Lock lock(device().mutex);
  if (device().sticky != cudaSuccess) return result(cudaSuccess);
  CUstream_st& stream = stream_of(handle);
  if (stream.capture != nullptr) {
    stream.capture->work.push_back(std::move(work));
    if (&stream != stream.capture->origin) stream.capture->unjoined.insert(&stream);
  } else {
    stream.queue.push_back(std::move(work));
  }
  return cudaSuccess;
}

void set_memory_limit(std::int64_t bytes) { device().limit = bytes; }
std::int64_t allocated_bytes() { return device().allocated; }
std::int64_t peak_bytes() { return device().peak; }
void reset_peak() { device().peak = device().allocated; }
std::string last_fault() { return device().fault; }

void revive() {
  const Lock lock(device().mutex);
  device().sticky = device().last = cudaSuccess;
  device().fault.clear();
  for (CUstream_st* stream : device().streams) stream->queue.clear();
  device().default_stream.queue.clear();
}

}  // namespace engine::cuda::emulation

using namespace engine::cuda::emulation;  // NOLINT: the functions below are these types' public face

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    default: return "cudaErrorInvalidValue";
  }
}

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "invalid argument";
  }
}

cudaError_t cudaGetLastError() {
  const Lock lock(device().mutex);
  const cudaError_t status = device().sticky != cudaSuccess ? device().sticky : device().last;
  device().last = cudaSuccess;
  return status;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  Device& d = device();
  const Lock lock(d.mutex);
  if (d.sticky != cudaSuccess) return result(cudaSuccess);
  if (d.captures > 0) return result(cudaErrorStreamCaptureUnsupported);
  if (d.allocated + static_cast<std::int64_t>(bytes) > d.limit) return result(cudaErrorMemoryAllocation);
  const cudaError_t status = allocate(d.device_memory, data, bytes, 256);
  if (status == cudaSuccess) {
    d.allocated += static_cast<std::int64_t>(bytes);
    d.peak = std::max(d.peak, d.allocated);
  }
  return result(status);
}

cudaError_t cudaFree(void* data) {
  Device& d = device();
  const Lock lock(d.mutex);
  if (data == nullptr) return result(cudaSuccess);
  drain_all();
  const auto found = d.device_memory.find(data);
  if (found != d.device_memory.end()) d.allocated -= static_cast<std::int64_t>(found->second.bytes);
  return result(release(d.device_memory, data));
}

cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) {
  const Lock lock(device().mutex);
  return result(allocate(device().host_memory, data, bytes, 256));
}

cudaError_t cudaFreeHost(void* data) {
  const Lock lock(device().mutex);
  drain_all();
  return result(release(device().host_memory, data));
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const Lock lock(device().mutex);
  *total = static_cast<std::size_t>(device().limit);
  *free = static_cast<std::size_t>(std::max<std::int64_t>(0, device().limit - device().allocated));
  return result(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return result(enqueue(stream, [=] { std::memmove(to, from, bytes); }));
}

cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  return result(enqueue(stream, [=] { std::memset(data, value, bytes); }));
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) { return number == 0 ? cudaSuccess : result(cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->l2CacheSize = 50 << 20;
  properties->sharedMemPerBlockOptin = 227 << 10;
  properties->totalGlobalMem = static_cast<std::size_t>(device().limit);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10 : 4;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -1;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(device().mutex);
  if (device().captures > 0) return result(cudaErrorStreamCaptureUnsupported);
  drain_all();
  return result(cudaSuccess);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  const Lock lock(device().mutex);
  *stream = new CUstream_st;
  device().streams.insert(*stream);
  return result(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(device().mutex);
  drain(*stream);
  device().streams.erase(stream);
  delete stream;
  return result(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (stream_of(stream).capture != nullptr) return result(cudaErrorStreamCaptureUnsupported);
  drain(stream_of(stream));
  return result(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  const Lock lock(device().mutex);
  CUstream_st& stream = stream_of(handle);
  if (event->capture != nullptr) {
    if (stream.capture == nullptr) {
      stream.capture = event->capture;
      event->capture->members.insert(&stream);
    }
    event->capture->unjoined.erase(event->captured_in);
    if (&stream != event->capture->origin) event->capture->unjoined.insert(&stream);
    return result(cudaSuccess);
  }
  if (event->marker == nullptr) return result(cudaSuccess);
  return result(enqueue(handle, [marker = event->marker] { run_until(marker); }));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(device().mutex);
  if (stream == nullptr || stream->capture != nullptr) return result(cudaErrorStreamCaptureUnsupported);
  stream->capture = new CUgraph_st;
  stream->capture->origin = stream;
  stream->capture->members.insert(stream);
  ++device().captures;
  return result(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(device().mutex);
  if (stream->capture == nullptr) return result(cudaErrorInvalidValue);
  std::unique_ptr<CUgraph_st> captured(stream->capture);
  for (CUstream_st* member : captured->members) member->capture = nullptr;
  --device().captures;
  *graph = nullptr;
  if (!captured->unjoined.empty()) return result(cudaErrorStreamCaptureUnjoined);
  *graph = captured.release();
  return result(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return result(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return result(enqueue(stream, [work = executable->work] {
    for (const Work& each : *work) each();
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return result(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const Lock lock(device().mutex);
  CUstream_st& stream = stream_of(handle);
  event->capture = stream.capture;
  event->captured_in = stream.capture != nullptr ? &stream : nullptr;
  if (stream.capture != nullptr) return result(cudaSuccess);
  event->marker = std::make_shared<Marker>(Marker{&stream});
  return result(enqueue(handle, [marker = event->marker] {
    marker->reached = true;
    marker->when = std::chrono::steady_clock::now();
  }));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(device().mutex);
  if (event->capture != nullptr) return result(cudaErrorStreamCaptureUnsupported);
  if (event->marker != nullptr) run_until(event->marker);
  return result(cudaSuccess);
}

// Asking is what makes work happen here, so a loop that polls ends.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(device().mutex);
  if (event->marker == nullptr || event->marker->reached) return result(cudaSuccess);
  run_until(event->marker);
  return result(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock lock(device().mutex);
  if (start->marker == nullptr || end->marker == nullptr) return result(cudaErrorInvalidValue);
  if (!start->marker->reached || !end->marker->reached) return result(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->marker->when - start->marker->when).count();
  return result(cudaSuccess);
}
