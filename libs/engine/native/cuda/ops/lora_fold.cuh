// lora_fold.cuh: low = scale · x·Aᵀ (lora_rows.h), made inside the product that adds low·Bᵀ, for few rows: a kernel of its own would cost the chain more than
// the sums are worth. The product's blocks have x in shared memory anyway, and there are more of them than sums: each takes a share, and all meet only before
// they finish, long after.
//   A share is one column of low, one row, up to 4,096 values of K. A block of the grid's first half has share number blockIdx.x, and those half a grid on.
//   Sums are fp32, of x as the product takes it (fp16 of x / 16), in an order that depends on K alone.
//   Blocks wait for those of the first half, so there has to be room for these on the device at once: such kernels of several streams take turns (infer/device_turn.h). The emulation runs
//   blocks one after another: there every block makes all shares.
#pragma once

#include "cuda/ops/block_reduce.h"
#include "cuda/ops/nf4_products.h"

namespace engine::cuda::nf4 {

// The threads of a block that make shares, whatever its size; 16-byte units of A that each holds.
inline constexpr int kShareThreads = 256, kShareUnits = 2, kShareValues = 8 * kShareUnits * kShareThreads;

// How many shares there are, and which are this block's.
struct Shares {
  int pieces, columns, all, first, step;
  ENGINE_DEVICE explicit Shares(const Products& p)
      : pieces(static_cast<int>((p.x.cols + kShareValues - 1) / kShareValues)), columns(static_cast<int>(p.adapters.parts * p.adapters.ranks)),
        all(static_cast<int>(p.x.rows) * columns * pieces) {
#ifdef ENGINE_CUDA_EMULATED
    first = 0;
    step = 1;
#else
    step = static_cast<int>(gridDim.x + 1) / 2;
    first = static_cast<int>(blockIdx.x) < step ? static_cast<int>(blockIdx.x) : all;
#endif
  }
};

// The adapter's row of A for a column of low; null where the row of x has no such column.
ENGINE_DEVICE const bf16* row_of_a(const Products& p, int row, int column) {
  const std::int32_t adapter = p.adapters.adapter[row];
  if (adapter < 0) return nullptr;
  const auto ranks = static_cast<int>(p.adapters.ranks);
  const LoraEntry& entry = p.adapters.entries[adapter * p.adapters.parts + column / ranks];
  return column % ranks < entry.rank ? entry.a + column % ranks * p.x.cols : nullptr;
}

// This thread's values of a share's A.
struct ShareOfA {
  uint4 units[kShareUnits];
};
ENGINE_DEVICE ShareOfA load_share(const Products& p, const Shares& shares, int share) {
  ShareOfA of{};
  if (share >= shares.all || threadIdx.x >= kShareThreads) return of;
  const bf16* a = row_of_a(p, share / shares.pieces / shares.columns, share / shares.pieces % shares.columns);
  if (a == nullptr) return of;
#pragma unroll
  for (int i = 0; i < kShareUnits; ++i) {
    const std::int64_t at = std::int64_t{share % shares.pieces} * kShareValues + 8 * (static_cast<int>(threadIdx.x) + i * kShareThreads);
    if (at < p.x.cols) of.units[i] = load16_once(a + at);
  }
  return of;
}

// All threads, with x staged: x_at(row, unit) is where 8 values of it lie. `share`: of the block's first share.
template <class XAt>
ENGINE_DEVICE void make_shares(const Products& p, const Shares& shares, ShareOfA share, const XAt& x_at) {
  for (int number = shares.first; number < shares.all; number += shares.step) {
    if (number != shares.first) share = load_share(p, shares, number);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kShareUnits; ++i) {
      const int unit = number % shares.pieces * (kShareValues / 8) + static_cast<int>(threadIdx.x) + i * kShareThreads;
      if (threadIdx.x >= kShareThreads || 8 * unit >= p.x.cols) continue;
      float a[8], x[8];
      widen8(share.units[i], a);
      const uint4 pairs = load16(x_at(number / shares.pieces / shares.columns, unit));
      unpack_f16(pairs.x, x[0], x[1]);
      unpack_f16(pairs.y, x[2], x[3]);
      unpack_f16(pairs.z, x[4], x[5]);
      unpack_f16(pairs.w, x[6], x[7]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum = fmaf(a[j], x[j], sum);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      p.partials[number] = kRange * sum;
      count_arrival(p.arrivals);
    }
  }
}

// One thread: until all shares are there. The last block to see it leaves the counters as it found them.
ENGINE_DEVICE void wait_for_shares(const Products& p, const Shares& shares) {
#ifdef ENGINE_CUDA_EMULATED
  p.arrivals[0] = 0;
#else
  while (load_acquire(p.arrivals) < static_cast<unsigned>(shares.all)) {
  }
  if (atomicAdd(p.arrivals + 1, 1u) + 1 == gridDim.x) p.arrivals[0] = p.arrivals[1] = 0;
#endif
}

// All threads, after a barrier behind wait_for_shares: low [rows, columns] into shared memory. A barrier has to follow.
ENGINE_DEVICE void join_shares(const Products& p, const Shares& shares, bf16* low) {
  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(p.x.rows) * shares.columns; i += static_cast<int>(blockDim.x)) {
    const int row = i / shares.columns, column = i % shares.columns;
    const std::int32_t adapter = p.adapters.adapter[row];
    if (adapter < 0) continue;
    float sum = 0;
    for (int piece = 0; piece < shares.pieces; ++piece) sum += load_shared_cache(p.partials + i * shares.pieces + piece);
    low[i] = narrow(p.adapters.entries[adapter * p.adapters.parts + column / static_cast<int>(p.adapters.ranks)].scale * sum);
  }
}

}  // namespace engine::cuda::nf4
