// execution.h: CUDA's execution model on one CPU thread: what a kernel's source needs besides the host interface.
//   Blocks run one after another. The threads of a block are fibers; each runs until it must wait for others (a barrier, or an instruction that the lanes
//   of a warp carry out together) and then gives way. Lanes and warps run in an order that a test can turn around: a result that depends on it is a race.
//   Reported as faults: a barrier that some threads left out, lanes of a warp in different instructions, writes beyond a stack or beyond shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "cuda/runtime/emulation/cuda_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace engine::cuda::emulation {

struct ThreadIndex {
  dim3 thread, block;
};
extern ThreadIndex now;        // of the fiber that runs
extern dim3 block_size, grid_size;
extern unsigned lane_number;   // of the fiber that runs, within its warp

inline constexpr std::size_t kSlotBytes = 64;

// Instructions that lanes carry out together; two kinds never meet.
enum class Together : std::uint8_t { sync_warp, shuffle, vote, load_matrix, multiply, group_multiply, group_fence, group_commit, group_wait };

// Every lane of the warp gives `bytes` ≤ kSlotBytes; when the last has come, `combine` (or nothing) turns the 32 slots into 32 results. Returns the
// slots, or the results when there is a `combine`; slot i is at i * kSlotBytes. Valid until this lane's next meeting.
using Combine = void (*)(const std::byte* slots, std::byte* results);
const std::byte* meet(Together what, const void* mine, std::size_t bytes, Combine combine = nullptr);

// A fault unless the address is a multiple of 16, as wide accesses need.
void check_aligned16(const void* address);

void sync_block();
void prepare_counter(std::uint64_t* counter, unsigned arrivals);
void arrive_at_counter(std::uint64_t* counter);
void wait_at_counter(const std::uint64_t* counter, unsigned parity);
void* dynamic_shared();
// Shared memory of a declaration, told by the address of something static beside it.
void* static_shared(const void* site, std::size_t bytes);

// cp.async: the copy happens when the fiber waits for it, never before.
void copy_later(void* to, const void* from, std::size_t bytes, std::size_t valid_bytes);
void commit_copies();
void wait_copies(int groups_left);

// Products of warpgroups (warpgroup.cpp) read shared memory through another path than threads do. An address counts from the block's dynamic shared memory.
std::uint64_t shared_address(const void* address);
// `bytes` that a product reads: a fault outside the block's memory, or when the copy that filled them was not fenced.
const void* shared_for_products(std::uint64_t address, std::size_t bytes);
void fence_proxy();
void begin_block_products();
void end_block_products(unsigned warps);

// A fault of the thread that runs.
[[noreturn]] void fault(const std::string& what);

// The grid of one launch, run by the stream that it is given to. `body` is one thread's work.
cudaError_t launch_grid(cudaStream_t stream, dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> body);

enum class Order : std::uint8_t { ascending, descending };
void set_order(Order order);  // ENGINE_CUDA_ORDER=descending in the environment sets it for a whole process

}  // namespace engine::cuda::emulation

#define threadIdx (::engine::cuda::emulation::now.thread)
#define blockIdx (::engine::cuda::emulation::now.block)
#define blockDim (::engine::cuda::emulation::block_size)
#define gridDim (::engine::cuda::emulation::grid_size)
#define __syncthreads() (::engine::cuda::emulation::sync_block())
