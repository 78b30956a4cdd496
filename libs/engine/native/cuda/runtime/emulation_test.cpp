// The rules of CUDA's execution model that the emulation must enforce, or kernels would pass here and fail on a device.
#ifdef ENGINE_CUDA_EMULATED
#include <cstdint>
#include <vector>

#include "core/test.h"
#include "cuda/runtime/device_buffer.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

__global__ void reverse_block(const int* in, int* out) {
  SHARED_ARRAY(int, values, 256);
  values[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_block_without_barrier(const int* in, int* out) {
  SHARED_ARRAY(int, values, 256);
  values[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void sum_lanes(float* out) { out[threadIdx.x] = warp_sum(static_cast<float>(threadIdx.x)); }

__global__ void barrier_for_some() {
  if (threadIdx.x < 64) __syncthreads();
}

__global__ void lanes_apart(float* out) {
  if (threadIdx.x < 16)
    sync_warp();
  else
    out[0] = shuffle(1.0f, 0);
}

__global__ void write_beyond_shared() { static_cast<float*>(block_shared())[64] = 1.0f; }

__global__ void copy_through_shared(const uint4* in, uint4* early, uint4* late) {
  auto* tile = static_cast<uint4*>(block_shared());
  copy_async16(&tile[threadIdx.x], &in[threadIdx.x]);
  copy_async_commit();
  early[threadIdx.x] = tile[threadIdx.x];
  copy_async_wait<0>();
  late[threadIdx.x] = tile[threadIdx.x];
}

__global__ void multiply_once(const bf16* a, const bf16* b, float* c) {
  auto* shared = static_cast<bf16*>(block_shared());  // a [16][16], then b [16 k][8 n]
  for (unsigned i = threadIdx.x; i < 256 + 128; i += blockDim.x) shared[i] = i < 256 ? a[i] : b[i - 256];
  __syncthreads();
  const unsigned lane = lane_id();
  std::uint32_t fragment_a[4], fragment_b[4];
  load_matrix4(fragment_a, shared + (lane % 16) * 16 + lane / 16 * 8);
  load_matrix4<true>(fragment_b, shared + 256 + lane % 16 * 8);
  float sums[4] = {};
  mma(sums, fragment_a, fragment_b[0], fragment_b[1]);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

__global__ void add_one(int* value) {
  if (threadIdx.x == 0) ++*value;
}

template <class T>
T value_at(const DeviceBuffer<T>& buffer, cudaStream_t after, std::size_t i) {
  return buffer.read(after)[i];
}

// Runs `work` on a stream of its own and expects the device to report a fault that mentions `words`.
void check_faults(const std::string& words, const std::function<void(cudaStream_t)>& work) {
  {
    const Stream stream;
    work(stream);
    std::string seen;
    CHECK(engine::test::throws_code(Code::device_lost, [&] { stream.synchronize(); }, seen));
    CHECK(emulation::last_fault().find(words) != std::string::npos);
    CHECK(engine::test::throws_code(Code::device_lost, [&] { const DeviceMemory more(16); }, seen));  // and so does every later call
    emulation::revive();
  }
}

TEST("threads of a block see each other's shared memory after a barrier, and not before") {
  std::vector<int> values(512);
  for (int i = 0; i < 512; ++i) values[static_cast<std::size_t>(i)] = i + 1;
  const DeviceBuffer<int> in(values), out(512);
  const Stream stream;
  launch(stream, 2, 256, 0, reverse_block, in.data(), out.data());
  const std::vector<int> reversed = out.read(stream);
  for (int i = 0; i < 512; ++i) CHECK_EQ(reversed[static_cast<std::size_t>(i)], i / 256 * 256 + 256 - i % 256);
  launch(stream, 1, 256, 0, reverse_block_without_barrier, in.data(), out.data());
  const std::vector<int> wrong = out.read(stream);
  int poisoned = 0;
  for (int i = 0; i < 256; ++i) poisoned += wrong[static_cast<std::size_t>(i)] == -1;
  CHECK(poisoned >= 128 - 32);
}

TEST("lanes of a warp exchange values whatever the order they run in") {
  for (const auto order : {emulation::Order::descending, emulation::Order::ascending}) {
    emulation::set_order(order);
    const DeviceBuffer<float> out(64);
    const Stream stream;
    launch(stream, 1, 64, 0, sum_lanes, out.data());
    const std::vector<float> sums = out.read(stream);
    CHECK_EQ(sums[0], 496.0f);
    CHECK_EQ(sums[31], 496.0f);
    CHECK_EQ(sums[63], 1520.0f);
  }
}

TEST("a barrier that some threads leave out, and lanes in different instructions, are faults") {
  check_faults("left out", [](cudaStream_t stream) { launch(stream, 1, 128, 0, barrier_for_some); });
  const DeviceBuffer<float> out(1);
  check_faults("different instructions", [&](cudaStream_t stream) { launch(stream, 1, 32, 0, lanes_apart, out.data()); });
}

TEST("a write beyond shared memory is a fault") {
  check_faults("beyond its shared memory", [](cudaStream_t stream) { launch(stream, 1, 32, 256, write_beyond_shared); });
}

TEST("an asynchronous copy arrives when it is waited for, never before") {
  std::vector<uint4> values(32, uint4{1, 2, 3, 4});
  const DeviceBuffer<uint4> in(values), early(32), late(32);
  const Stream stream;
  launch(stream, 1, 32, 512, copy_through_shared, in.data(), early.data(), late.data());
  CHECK_EQ(value_at(early, stream, 7).y, 0xffffffffu);
  CHECK_EQ(value_at(late, stream, 7).y, 2u);
}

TEST("matrix fragments and their product follow the layout of the instruction set") {
  std::vector<bf16> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[static_cast<std::size_t>(i)] = to_bf16(static_cast<float>(i % 17 - 8));
  for (int i = 0; i < 128; ++i) b[static_cast<std::size_t>(i)] = to_bf16(static_cast<float>(i % 13 - 6));
  const DeviceBuffer<bf16> da(a), db(b);
  const DeviceBuffer<float> dc(128);
  const Stream stream;
  launch(stream, 1, 32, 1024, multiply_once, da.data(), db.data(), dc.data());
  const std::vector<float> c = dc.read(stream);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += static_cast<float>(((m * 16 + k) % 17 - 8) * ((k * 8 + n) % 13 - 6));
      CHECK_EQ(c[static_cast<std::size_t>(m * 8 + n)], sum);
    }
}

TEST("work of another stream is seen only by those who wait for its event") {
  const DeviceBuffer<int> value(std::vector<int>{0}), copy(1);
  const Stream producer, consumer;
  launch(producer, 1, 32, 0, add_one, value.data());
  copy_on_device(copy.data(), value.data(), 4, consumer);
  CHECK_EQ(value_at(copy, consumer, 0), 0);
  const Event made;
  made.record(producer);
  made.wait(consumer);
  copy_on_device(copy.data(), value.data(), 4, consumer);
  CHECK_EQ(value_at(copy, consumer, 0), 1);
}

TEST("a captured graph runs when it is launched, each time, with the streams that joined it") {
  const DeviceBuffer<int> value(std::vector<int>{0});
  const Stream stream, side;
  const Event forked, joined;
  const Graph graph = Graph::capture(stream, [&] {
    launch(stream, 1, 32, 0, add_one, value.data());
    forked.record(stream);
    forked.wait(side);
    launch(side, 1, 32, 0, add_one, value.data());
    joined.record(side);
    joined.wait(stream);
  });
  CHECK_EQ(value_at(value, stream, 0), 0);
  graph.launch(stream);
  graph.launch(stream);
  CHECK_EQ(value_at(value, stream, 0), 4);
  std::string seen;
  CHECK(engine::test::throws_code(Code::internal, [&] { Graph::capture(stream, [&] { const DeviceMemory taken(16); }); }, seen));
  CHECK(engine::test::throws_code(Code::internal, [&] {
    Graph::capture(stream, [&] {
      forked.record(stream);
      forked.wait(side);
      launch(side, 1, 32, 0, add_one, value.data());
    });
  }, seen));
}

TEST("a full device says how much was asked for and stays usable") {
  const std::int64_t before = emulation::allocated_bytes();
  emulation::set_memory_limit(before + 1000);
  std::string seen;
  CHECK(engine::test::throws_code(Code::oom, [] { const DeviceMemory memory(1001); }, seen));
  CHECK(seen.find("1001 bytes") != std::string::npos);
  const DeviceMemory fits(1000);
  CHECK(fits.data() != nullptr);
  emulation::set_memory_limit(std::int64_t{16} << 30);
}

}  // namespace
}  // namespace engine::cuda
#endif
