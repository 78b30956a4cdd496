#include "cuda/runtime/stream.h"

#include <array>
#include <atomic>

#include "cuda/runtime/error.h"

namespace engine::cuda {

Stream::Stream(Priority priority) {
  int lowest = 0, highest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  // The stream that computes is the high one, so that the low one fills what it leaves idle.
  CUDA_CHECK(cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking, priority == Priority::normal ? highest : lowest));
}

Stream::~Stream() {
  if (handle_ != nullptr) (void)cudaStreamDestroy(handle_);
}

void Stream::synchronize() const { CUDA_CHECK(cudaStreamSynchronize(handle_)); }

Event::Event(Timing timing) { CUDA_CHECK(cudaEventCreateWithFlags(&handle_, timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming)); }

Event::~Event() {
  if (handle_ != nullptr) (void)cudaEventDestroy(handle_);
}

void Event::record(cudaStream_t stream) const { CUDA_CHECK(cudaEventRecord(handle_, stream)); }
void Event::wait(cudaStream_t stream) const { CUDA_CHECK(cudaStreamWaitEvent(stream, handle_, 0)); }
void Event::synchronize() const { CUDA_CHECK(cudaEventSynchronize(handle_)); }

bool Event::done() const {
  const cudaError_t status = cudaEventQuery(handle_);
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.handle_, handle_));
  return milliseconds;
}

Graph::~Graph() {
  if (handle_ != nullptr) (void)cudaGraphExecDestroy(handle_);
}

Graph Graph::capture(cudaStream_t stream, const std::function<void()>& work) {
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t captured = nullptr;
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(stream, &captured);
    if (captured != nullptr) (void)cudaGraphDestroy(captured);
    (void)cudaGetLastError();
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(stream, &captured));
  Graph graph;
  const cudaError_t status = cudaGraphInstantiate(&graph.handle_, captured, 0);
  (void)cudaGraphDestroy(captured);
  CUDA_CHECK(status);
  return graph;
}

void Graph::launch(cudaStream_t stream) const {
  require(Code::internal, handle_ != nullptr, "an empty graph is launched");
  CUDA_CHECK(cudaGraphLaunch(handle_, stream));
}

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return {properties.name,
          properties.major,
          properties.minor,
          properties.multiProcessorCount,
          static_cast<std::int64_t>(properties.sharedMemPerBlockOptin),
          properties.l2CacheSize,
          static_cast<std::int64_t>(properties.totalGlobalMem)};
}

void use_device(int device) { CUDA_CHECK(cudaSetDevice(device)); }

namespace {

// An attribute of the current device, read once for each device and kept in `known`, zero meaning unread.
constexpr int kMostDevices = 64;
using Known = std::array<std::atomic<int>, kMostDevices>;
int attribute(cudaDeviceAttr which, Known& known) {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  require(Code::unsupported, device < kMostDevices, "device number ", device, " is above ", kMostDevices - 1);
  auto& value = known[static_cast<std::size_t>(device)];
  if (value.load() == 0) {
    int read = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&read, which, device));
    value.store(read);
  }
  return value.load();
}

}  // namespace

int multiprocessors() {
  static Known known{};
  return attribute(cudaDevAttrMultiProcessorCount, known);
}

std::int64_t block_shared_bytes() {
  static Known known{};
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, known);
}

bool can_chain() {
  static Known known{};
  return attribute(cudaDevAttrComputeCapabilityMajor, known) >= 9;
}

bool has_warpgroup_products() {
#if defined(ENGINE_CUDA_EMULATED)
  return true;
#elif defined(ENGINE_CUDA_SM90A)
  static Known known{};
  return attribute(cudaDevAttrComputeCapabilityMajor, known) == 9;
#else
  return false;
#endif
}

}  // namespace engine::cuda
