// lora_fold.cuh: low = scale · x·Aᵀ (lora_rows.h), made inside the product that adds low·Bᵀ, for few rows: a kernel of its own would cost the chain more than
// the sums are worth. The product's blocks have x in shared memory anyway: their warps take shares before their weights, and need all of them only where
// they finish, after those.
//   A share is one column of low, one row, 1,024 or 2,048 values of K. Sums are fp32, of x as the product takes it (fp16 of x / 16), in an order that depends on
//   K alone. A share's sum and the kernel's number are one word of global memory, so nobody counts arrivals: who needs it looks until it is there.
//   All blocks look at the same few lines, which one slice of the second-level cache would give to one after another: there are copies, and a block has one.
//   A and B, which no kernel of a step writes, are copied to shared memory in the background, before x is there.
//   Short code counts for more than few instructions: what a block does once, it does with code that is not in its nearest cache.
//   Blocks wait for those of the first half, so there has to be room for these on the device at once: such kernels of several streams take turns
//   (infer/device_turn.h). The emulation runs blocks one after another: there every block makes all shares.
#pragma once

#include <algorithm>

#include "cuda/ops/nf4_products.h"

namespace engine::cuda::nf4 {

inline constexpr std::int64_t kMostShared = 32768;  // the longest K

// A word that another block waits for: a value, and a tag that says that it is there. Who reads the tag has the value; nothing else is said about memory.
ENGINE_DEVICE void store_tagged(std::uint64_t* word, std::uint32_t value, std::uint32_t tag) {
  const std::uint64_t both = std::uint64_t{tag} << 32 | value;
#ifdef ENGINE_CUDA_EMULATED
  *word = both;
#else
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(both) : "memory");
#endif
}
// As it is now.
ENGINE_DEVICE std::uint64_t load_tagged(const std::uint64_t* word) {
#ifdef ENGINE_CUDA_EMULATED
  return *word;
#else
  std::uint64_t both;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(word) : "memory");
  return both;
#endif
}
ENGINE_DEVICE std::uint32_t tag_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); }

// Byte `offset` of the 32 KB that the table leaves free (nf4_products.h); runs of 128 lie together.
inline constexpr int kFreeBytes = kTableBytes / 2;
ENGINE_DEVICE unsigned char* free_place(unsigned char* table, int offset) { return table + 256 * (offset / 128) + 128 + offset % 128; }

// A kernel's number, another than any before in this stream; kernels of any grids of at most kMostBlocks. One thread of each block asks behind
// wait_for_previous() and then counts; blocks share no counter, and all counters are the same.
ENGINE_DEVICE std::uint32_t kernel_number(const ShareWords* shares) { return static_cast<std::uint32_t>(load_tagged(shares->kernels + blockIdx.x)) + 1u; }
ENGINE_DEVICE void count_kernel(ShareWords* shares, std::uint32_t number) {
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < kMostBlocks; block += gridDim.x) store_tagged(shares->kernels + block, number, 0);
}

// The plan of a product by blocks of `threads` threads of which each finishes at most `items` outputs. low and, before it, a norm's `norm_bytes` are at the
// beginning of the free bytes; then B, then A, as far as there is room.
inline constexpr int kHeldRanks = 16;  // of B's row
inline SharePlan plan_shares(const Products& p, int threads, std::int64_t items, std::int64_t norm_bytes) {
  SharePlan plan;
  const std::int64_t rows = p.x.rows, values = p.x.cols > 8192 ? 2048 : 1024;
  plan.columns = static_cast<int>(p.adapters.parts * p.adapters.ranks);
  plan.units = static_cast<int>(values / (8 * kWarp));
  plan.pieces = static_cast<int>((p.x.cols + values - 1) / values);
  while (1 << plan.bits < plan.pieces) ++plan.bits;
  plan.words = p.shrinks ? static_cast<int>(rows * plan.columns) << plan.bits : 0;
  for (plan.copies = 8; plan.copies * plan.words > kMostShareWords;) plan.copies /= 2;
  const auto lines = [](std::int64_t bytes) { return (bytes + 127) / 128 * 128; };
  const std::int64_t b = lines(std::max(norm_bytes, 2 * rows * plan.columns)), a = lines(b + 2 * kHeldRanks * std::min<std::int64_t>(items, threads));
  plan.place_of_b = a <= kFreeBytes ? static_cast<int>(b) : -1;
  plan.place_of_a = static_cast<int>(a);
  plan.held_a = static_cast<int>(std::max<std::int64_t>(kFreeBytes - a, 0) / (2 * values));
  return plan;
}

// The adapter of a row for a part; rank 0 where it has none.
ENGINE_DEVICE LoraEntry entry_of(const Products& p, int row, int part) {
  const std::int32_t adapter = p.adapters.adapter[row];
  return adapter < 0 ? LoraEntry{} : p.adapters.entries[adapter * p.adapters.parts + part];
}

// A warp's shares: those of numbers first, first + step …, which count like their words: [row][column][1 << bits].
struct Turns {
  int first, step;
  ENGINE_DEVICE Turns(const Products& p, int warp, int warps) {
#ifdef ENGINE_CUDA_EMULATED
    first = warp;
    step = warps;
#else
    const auto makers = static_cast<int>(gridDim.x + 1) / 2, block = static_cast<int>(blockIdx.x);
    first = block < makers ? block + warp * makers : p.plan.words;
    step = warps * makers;
#endif
  }
};

// What a lane needs of a share.
struct Share {
  const bf16* a = nullptr;  // from its first 8 values of K on; null: there is none
  float scale = 0;
  int row = 0, unit = 0;    // of x, in units of 8 values

  ENGINE_DEVICE Share(const Products& p, int number) {
    const int piece = number & ((1 << p.plan.bits) - 1);
    if (number >= p.plan.words || piece >= p.plan.pieces) return;
    int column = number >> p.plan.bits, part = 0;
    const auto ranks = static_cast<int>(p.adapters.ranks);
#pragma unroll 1
    for (; column >= p.plan.columns; column -= p.plan.columns) ++row;
#pragma unroll 1
    for (; column >= ranks; column -= ranks) ++part;
    const LoraEntry entry = entry_of(p, row, part);
    if (column >= entry.rank) return;
    unit = piece * p.plan.units * kWarp + static_cast<int>(lane_id());
    a = entry.a + column * p.x.cols + 8 * unit;
    scale = entry.scale;
  }
  // Whether the lane has a unit number i.
  ENGINE_DEVICE bool has(const Products& p, int i) const { return a != nullptr && i < p.plan.units && 8 * (unit + kWarp * i) < p.x.cols; }
};

// Where unit i of A of a warp's first share is held; of warps below p.plan.held_a.
ENGINE_DEVICE unsigned char* held_a(const Products& p, unsigned char* table, int warp, int i) {
  return free_place(table, p.plan.place_of_a + 16 * kWarp * (warp * p.plan.units + i) + 16 * static_cast<int>(lane_id()));
}
ENGINE_DEVICE void bring_share(const Products& p, const Share& share, unsigned char* table, int warp) {
#pragma unroll 1
  for (int i = 0; warp < p.plan.held_a && share.has(p, i); ++i) copy_async16(held_a(p, table, warp, i), share.a + 8 * kWarp * i);
}

// A block, with x staged: x_at(row, unit) is where 8 values of it lie.
template <class XAt>
ENGINE_DEVICE void make_shares(const Products& p, const Turns& turns, unsigned char* table, int warp, std::uint32_t tag, const XAt& x_at) {
#pragma unroll 1
  for (int number = turns.first; number < p.plan.words; number += turns.step) {
    const bool held = number == turns.first && warp < p.plan.held_a;
    const Share share(p, number);  // read again: registers are scarce
    float sum = 0;
#pragma unroll 1
    for (int i = 0; share.has(p, i); ++i) {
      float a[8], x[8];
      widen8(held ? load16(held_a(p, table, warp, i)) : load16(share.a + 8 * kWarp * i), a);
      const uint4 pairs = load16(x_at(share.row, share.unit + kWarp * i));
      unpack_f16(pairs.x, x[0], x[1]);
      unpack_f16(pairs.y, x[2], x[3]);
      unpack_f16(pairs.z, x[4], x[5]);
      unpack_f16(pairs.w, x[6], x[7]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum = fmaf(a[j], x[j], sum);
    }
    sum = share.scale * kRange * warp_sum(sum);
    const auto copy = static_cast<int>(lane_id());
    if (copy < p.plan.copies) store_tagged(p.shares->words + copy * p.plan.words + number, bits_of(sum), tag);
  }
#ifdef ENGINE_CUDA_EMULATED
  __syncthreads();  // a thread that looks for a word keeps the others from making it
#endif
}

// low [row][column] of this block.
ENGINE_DEVICE bf16* low_place(unsigned char* table, int i) { return reinterpret_cast<bf16*>(free_place(table, 2 * i)); }

// Word `number` as this block sees it now.
ENGINE_DEVICE std::uint64_t look(const Products& p, int number) {
  return number < p.plan.words ? load_tagged(p.shares->words + (static_cast<int>(blockIdx.x) & (p.plan.copies - 1)) * p.plan.words + number) : 0;
}

// A block of `threads`: until all shares are there; low into its place, in an order that depends on K alone. `word`: what this thread saw of the word of its
// own number. A barrier has to follow.
ENGINE_DEVICE void join_shares(const Products& p, int threads, std::uint64_t word, std::uint32_t tag, unsigned char* table) {
  const int width = 1 << p.plan.bits;
#pragma unroll 1
  for (int number = static_cast<int>(threadIdx.x); number / kWarp * kWarp < p.plan.words; number += threads) {
    if (number >= threads) word = look(p, number);
    float sum = 0;
    if (number < p.plan.words && (number & (width - 1)) < p.plan.pieces) {
      while (tag_of(word) != tag) word = look(p, number);
      sum = float_of(static_cast<std::uint32_t>(word));
    }
#pragma unroll 1
    for (int mask = width / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, static_cast<unsigned>(mask));
    if (number < p.plan.words && (number & (width - 1)) == 0) *low_place(table, number >> p.plan.bits) = narrow(sum);
  }
}

// B's row `n` for a row of x: its beginning to shared memory.
ENGINE_DEVICE void bring_b(const LoraEntry& entry, int n, unsigned char* to) {
#pragma unroll 1
  for (int j = 0; j < entry.rank; j += 8) {
    const bf16* from = entry.b + std::int64_t{n} * entry.rank + j;
    if (j < kHeldRanks)
      copy_async16(to + 2 * j, from);
    else
      prefetch(from);
  }
}
// Σ_j low[j] · B[n, j]; low(j) gives eight of them. `held`: where bring_b put it, or null.
template <class Low>
ENGINE_DEVICE float low_rank_sum(const Products& p, int row, int part, int n, int rank, const unsigned char* held, const Low& low) {
  float sum = 0;
#pragma unroll 1
  for (int j = 0; j < rank; j += 8) {
    float u[8], v[8];
    widen8(low(j), u);
    widen8(held != nullptr && j < kHeldRanks ? load16(held + 2 * j) : load16(entry_of(p, row, part).b + std::int64_t{n} * rank + j), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(u[i], v[i], sum);
  }
  return sum;
}

}  // namespace engine::cuda::nf4
