// The rules of a warpgroup's products that the emulation must enforce, and their layouts. On a device the attention tests rely on the same.
#ifdef ENGINE_CUDA_EMULATED
#include <cstdint>
#include <vector>

#include "core/test.h"
#include "cuda/runtime/device_buffer.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/warpgroup.h"

namespace engine::cuda {
namespace {

constexpr int kSide = 64;

enum class Slip : std::uint8_t { none, no_proxy_fence, no_fence, no_wait };

// plain = a·bᵀ with both operands in shared memory, early what is there before the wait, turned = a·b with a in registers.
__global__ void multiply_tiles(const bf16* a, const bf16* b, float* plain, float* early, float* turned, Slip slip) {
  auto* left = static_cast<bf16*>(block_shared());
  bf16* right = left + kSide * kSide;
  for (int i = static_cast<int>(threadIdx.x); i < kSide * 8; i += kWarpgroup) {
    const int row = i / 8, at = row * kSide + (i % 8 ^ row % 8) * 8;
    copy_async16(left + at, a + i * 8);
    copy_async16(right + at, b + i * 8);
  }
  copy_async_commit();
  copy_async_wait<0>();
  if (slip != Slip::no_proxy_fence) fence_shared_for_products();
  __syncthreads();

  const int lane = static_cast<int>(lane_id()), warp_row = static_cast<int>(threadIdx.x) / kWarp * 16, row = warp_row + lane / 4, column = 2 * (lane % 4);
  const auto write = [&](float* to, const float(&d)[kSide / 8][4]) {
    for (int n = 0; n < kSide / 8; ++n)
      for (int i = 0; i < 4; ++i) to[(row + i / 2 * 8) * kSide + 8 * n + column + i % 2] = d[n][i];
  };
  float d[kSide / 8][4] = {};
  if (slip != Slip::no_fence) fence_products();
  const std::uint64_t a_matrix = matrix_descriptor(left, 16, 1024), b_matrix = matrix_descriptor(right, 16, 1024);
  for (int k = 0; k < 4; ++k) multiply_group<false>(d, further(a_matrix, 32 * k), further(b_matrix, 32 * k), k > 0);
  commit_products();
  write(early, d);
  if (slip == Slip::no_wait) return;
  wait_products<0>(d);
  write(plain, d);

  fence_products();
  for (int k = 0; k < 4; ++k) {
    std::uint32_t fragment[4];
    const int r = warp_row + lane % 16;
    load_matrix4(fragment, left + r * kSide + ((2 * k + lane / 16) ^ r % 8) * 8);
    multiply_group<true>(d, fragment, further(matrix_descriptor(right, kSide * 128, 1024), 2048 * k), k > 0);
  }
  commit_products();
  wait_products<0>(d);
  write(turned, d);
}

struct Tiles {
  std::vector<bf16> a = std::vector<bf16>(kSide * kSide), b = a;
  DeviceBuffer<bf16> device_a, device_b;
  DeviceBuffer<float> plain{kSide * kSide}, early{kSide * kSide}, turned{kSide * kSide};
  Tiles() {
    for (int i = 0; i < kSide * kSide; ++i) {
      a[static_cast<std::size_t>(i)] = to_bf16(static_cast<float>(i % 17 - 8));
      b[static_cast<std::size_t>(i)] = to_bf16(static_cast<float>(i % 13 - 6));
    }
    device_a = DeviceBuffer<bf16>(a);
    device_b = DeviceBuffer<bf16>(b);
  }
  void multiply(cudaStream_t stream, Slip slip) const {
    launch(stream, 1, kWarpgroup, 4 * kSide * kSide, multiply_tiles, device_a.data(), device_b.data(), plain.data(), early.data(), turned.data(), slip);
  }
};

void check_faults(const std::string& words, Slip slip) {
  const Tiles tiles;
  const Stream stream;
  tiles.multiply(stream, slip);
  std::string seen;
  CHECK(engine::test::throws_code(Code::device_lost, [&] { stream.synchronize(); }, seen));
  CHECK(emulation::last_fault().find(words) != std::string::npos);
  emulation::revive();
}

TEST("a warpgroup's products follow the layouts of the instruction set and arrive when they are waited for") {
  const Tiles tiles;
  const Stream stream;
  tiles.multiply(stream, Slip::none);
  const std::vector<float> plain = tiles.plain.read(stream), early = tiles.early.read(stream), turned = tiles.turned.read(stream);
  const auto at = [](int r, int c) { return static_cast<std::size_t>(r * kSide + c); };
  for (int m = 0; m < kSide; ++m)
    for (int n = 0; n < kSide; ++n) {
      float along = 0, across = 0;
      for (int k = 0; k < kSide; ++k) {
        along += to_float(tiles.a[at(m, k)]) * to_float(tiles.b[at(n, k)]);
        across += to_float(tiles.a[at(m, k)]) * to_float(tiles.b[at(k, n)]);
      }
      CHECK_EQ(plain[at(m, n)], along);
      CHECK_EQ(turned[at(m, n)], across);
      CHECK_EQ(early[at(m, n)], 0.0f);
    }
}

TEST("a product of what was not fenced, and one never waited for, are faults") {
  check_faults("not fenced", Slip::no_proxy_fence);
  check_faults("before wgmma.fence", Slip::no_fence);
  check_faults("not waited for", Slip::no_wait);
}

}  // namespace
}  // namespace engine::cuda
#endif
