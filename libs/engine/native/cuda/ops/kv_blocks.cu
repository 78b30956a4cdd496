// kv_blocks.cu: one block of threads for each layer of a key/value block, 16 bytes a thread at a time. The list travels as the kernel's argument.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/kv_blocks.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kMostListed = 256;

struct BlockList {
  std::int32_t number[kMostListed];
};

ENGINE_DEVICE uint4* block_of(const KvBlocks& blocks, std::int64_t layer, std::int32_t number) {
  return reinterpret_cast<uint4*>(static_cast<std::uint8_t*>(blocks.pool) + layer * blocks.layer_bytes + number * blocks.block_bytes);
}

__global__ void __launch_bounds__(kThreads) zero(KvBlocks blocks, BlockList list) {
  uint4* to = block_of(blocks, blockIdx.y, list.number[blockIdx.x]);
  for (std::int64_t i = threadIdx.x; i < blocks.block_bytes / 16; i += kThreads) to[i] = uint4{0, 0, 0, 0};
}

__global__ void __launch_bounds__(kThreads) copy(KvBlocks blocks, std::int32_t to, std::int32_t from) {
  uint4* target = block_of(blocks, blockIdx.x, to);
  const uint4* source = block_of(blocks, blockIdx.x, from);
  for (std::int64_t i = threadIdx.x; i < blocks.block_bytes / 16; i += kThreads) target[i] = source[i];
}

void check(const KvBlocks& blocks) {
  require(blocks.block_bytes % 16 == 0 && blocks.layer_bytes % 16 == 0, "key/value blocks of ", blocks.block_bytes, " bytes, layers ", blocks.layer_bytes,
          " apart; the device takes multiples of 16");
}

}  // namespace

void kv_zero(const KvBlocks& blocks, std::span<const std::int32_t> which, cudaStream_t stream) {
  check(blocks);
  while (!which.empty()) {
    const std::size_t count = std::min<std::size_t>(which.size(), kMostListed);
    BlockList list{};
    std::copy_n(which.begin(), count, list.number);
    launch(stream, dim3(static_cast<unsigned>(count), cuda::blocks(blocks.layers)), kThreads, 0, zero, blocks, list);
    which = which.subspan(count);
  }
}

void kv_copy(const KvBlocks& blocks, std::int32_t to, std::int32_t from, cudaStream_t stream) {
  check(blocks);
  launch(stream, cuda::blocks(blocks.layers), kThreads, 0, copy, blocks, to, from);
}

}  // namespace engine::cuda
