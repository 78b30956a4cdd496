// nf4_gemv_few.cu: 1 to 4 rows. A block owns whole tiles, one behind another; its warps take equal runs of their quads (256 values of K of 16 outputs). A
// warp's codes come into registers some quads ahead; what it sums of a tile is joined with the other warps' at the end, in the order of K.
//   Floor: 0.53 B · N · K over memory bandwidth, which is 36 weights a cycle on each of an H200's multiprocessors at 1.75 GHz. For 1,024 weights and one row
//   a warp issues 57 instructions (71 of the four schedulers' slots) and takes 18 cycles of shared memory, 16 of them the table: up to 57 weights a cycle.
//   Chained: the table is made and the first codes are under way before the kernel that computes x has ended. Blocks fill a multiprocessor, two of 8 warps
//   where two tables and two x fit into its shared memory, else one of 16. With room for more, blocks would share one while another stands empty.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/lora_fold.cuh"
#include "cuda/ops/nf4_products.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda::nf4 {
namespace {

constexpr int kAhead = 2;                  // quads of a warp under way
constexpr int kQuadValues = kQuad * kBlock;
constexpr int kHeldNorm = 8192;            // weights of a norm that fit into the table's free half

constexpr std::int64_t padded(std::int64_t depth) { return ceil_div(depth, kQuadValues) * kQuadValues; }

// A block's memory: the table, x [rows][padded K] as fp16, partial [own tiles][warps][rows][kTile].
std::int64_t shared_bytes(std::int64_t rows, std::int64_t depth, std::int64_t own, std::int64_t warps) {
  return kTableBytes + 2 * rows * padded(depth) + 4 * own * warps * rows * kTile;
}

// What block b of `grid` owns begins at tile…
ENGINE_DEVICE int first_tile(unsigned block, int tiles, unsigned grid) { return static_cast<int>(std::int64_t{block} * tiles / grid); }

// Where eight weights of a norm lie in the table's free half.
ENGINE_DEVICE unsigned char* norm_place(unsigned char* table, int unit) { return table + 256 * (unit / 4) + 128 + 32 * (unit % 4); }

// Before x is there: the norm's weights, if they fit.
template <int kThreads>
ENGINE_DEVICE void bring_norm(const Products& p, unsigned char* table) {
  if (p.norm.weight == nullptr || p.x.cols > kHeldNorm) return;
  for (int unit = static_cast<int>(threadIdx.x); unit < static_cast<int>(p.x.cols / 8); unit += kThreads) {
    copy_async16(norm_place(table, unit), p.norm.weight + 8 * unit);
    copy_async16(norm_place(table, unit) + 16, p.norm.weight + 8 * unit + 4);
  }
  copy_async_commit();
}

// x, normalized if asked for, as fp16; zeros behind K. 16-byte chunks of odd rows are swapped in pairs: neighbouring rows lie in different banks.
template <int kRows, int kThreads>
ENGINE_DEVICE void stage_rows(const Products& p, unsigned char* table, unsigned char* to) {
  const int units = static_cast<int>(p.x.cols / 8), all = static_cast<int>(padded(p.x.cols) / 8), thread = static_cast<int>(threadIdx.x);
  const bool normalizes = p.norm.weight != nullptr;
  const auto at = [&](int row, int unit) { return to + 16 * (row * all + (unit ^ (row & 1))); };
  constexpr int kBatch = 4 / kRows;
  float squares[kRows] = {};
  for (int base = thread; base < all; base += kBatch * kThreads) {
    uint4 raw[kBatch][kRows] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int row = 0; row < kRows; ++row)
        if (base + i * kThreads < units && row < p.x.rows) raw[i][row] = load16(p.x.row(row) + 8 * (base + i * kThreads));
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (base + i * kThreads >= all) continue;
        float values[8];
        widen8(raw[i][row], values);
        store16(at(row, base + i * kThreads), normalizes ? raw[i][row] : to_operand(values));  // to be normalized: read again by this thread alone
        if (normalizes)
#pragma unroll
          for (int j = 0; j < 8; ++j) squares[row] = fmaf(values[j], values[j], squares[row]);
      }
  }
  if (!normalizes) return;
  float inverse[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) inverse[row] = 1.0f / sqrtf(block_sum(squares[row]) / static_cast<float>(p.x.cols) + p.norm.eps);
  const bool held = p.x.cols <= kHeldNorm;
  copy_async_wait<0>();  // this thread's weights of the norm, which are those it needs
  for (int unit = thread; unit < units; unit += kThreads) {
    float weight[8];
    const float* from = held ? reinterpret_cast<const float*>(norm_place(table, unit)) : p.norm.weight + 8 * unit;
    load_floats4(from, weight);
    load_floats4(from + 4, weight + 4);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float values[8];
      widen8(load16(at(row, unit)), values);
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = widen(narrow(values[j] * (inverse[row] * (weight[j] + p.norm.offset))));
      store16(at(row, unit), to_operand(values));
    }
  }
}

// Where adapters say what is added to a block's outputs: into the second-level cache.
template <bool kGated, int kThreads>
ENGINE_DEVICE void bring_b(const Products& p, int first, int own) {
  for (int i = static_cast<int>(threadIdx.x); i < own * kTile; i += kThreads) {
    const TileRow at = tile_row<kGated>(p, first + i / kTile, i % kTile);
    for (std::int64_t row = 0; row < p.x.rows && at.part >= 0; ++row) {
      const std::int32_t adapter = p.adapters.adapter[row];
      if (adapter < 0) continue;
      const LoraEntry& entry = p.adapters.entries[adapter * p.adapters.parts + at.part];
      if (entry.rank > 0) prefetch(entry.b + at.row * entry.rank);
    }
  }
}

// The codes and scales of a quad, of one lane.
struct Quad {
  uint4 codes[kQuad], scales;
};

template <int kRows, bool kGated, int kWarps>
__global__ void __launch_bounds__(kWarps * kWarp, 16 / kWarps) multiply(Products p, int tiles) {
  constexpr int kThreads = kWarps * kWarp;
  allow_next();
  auto* table = static_cast<unsigned char*>(block_shared());
  unsigned char* x = table + kTableBytes;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const int row_bytes = static_cast<int>(2 * padded(p.x.cols));
  auto* partials = reinterpret_cast<float*>(x + kRows * row_bytes);
  const int blocks = static_cast<int>(p.x.cols / kBlock), quads = (blocks + kQuad - 1) / kQuad;
  const int first = first_tile(blockIdx.x, tiles, gridDim.x), own = first_tile(blockIdx.x + 1, tiles, gridDim.x) - first;
  const auto run_begin = [&](int w) { return w * (own * quads) / kWarps; };  // of a warp's quads, counted from the block's first
  const int begin = run_begin(warp), count = run_begin(warp + 1) - begin;

  // A tile's last quad may reach into the next tile's codes: their scales are zero.
  int left = count, quad_ahead = begin % quads;
  const std::uint8_t* codes = p.codes + (std::int64_t{first + begin / quads} * blocks + kQuad * quad_ahead) * kBlockBytes + 16 * lane;
  const auto* scales = reinterpret_cast<const std::uint8_t*>(p.scales) + (std::int64_t{first} * quads + begin) * (32 * kQuad) + 16 * g;
  const int beyond = (kQuad * quads - blocks) * kBlockBytes;
  const auto bring = [&](Quad& quad) {
    if (left > 0) {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) quad.codes[i] = load16_once(codes + kBlockBytes * i);
      quad.scales = load16_once(scales);
    }
    --left;
    codes += kQuad * kBlockBytes;
    scales += 32 * kQuad;
    if (++quad_ahead == quads) {
      quad_ahead = 0;
      codes -= beyond;
    }
  };
  Quad ahead[kAhead] = {};
#pragma unroll
  for (int s = 0; s < kAhead; ++s) bring(ahead[s]);
  bring_norm<kThreads>(p, table);
  fill_table(table, p.book);
  const Shares shares(p);
  ShareOfA share{};
  if (p.shrinks) {
    share = load_share(p, shares, shares.first);
    bring_b<kGated, kThreads>(p, first, own);
  }
  wait_for_previous();
  // Thread i finishes output i (and i + kThreads …): what it adds is under way before the products.
  constexpr int kOutputs = kGated ? kTile / 2 : kTile;
  float residual = 0;
  if (!kGated && p.residual.data != nullptr && thread < own * kRows * kOutputs) {
    const TileRow at = tile_row<kGated>(p, first + thread / kOutputs / kRows, thread % kOutputs);
    const int row = thread / kOutputs % kRows;
    if (at.part >= 0 && row < p.y.rows) residual = widen(p.residual.row(row)[p.first[at.part] + at.row]);
  }
  stage_rows<kRows, kThreads>(p, table, x);
  __syncthreads();
  if (p.shrinks) make_shares(p, shares, share, [&](int row, int unit) { return x + row * row_bytes + 16 * (unit ^ (row & 1)); });

  const std::uint32_t lane4 = 4u * static_cast<unsigned>(lane);
  const bool column = g < kRows;  // the columns beyond stay zero
  const unsigned char* x_of_lane = x + (column ? g : 0) * row_bytes + 32 * t;
  const int swap = column ? 16 * (g & 1) : 0;
  int tile = begin / quads, quad = begin % quads;
  float total[4] = {};
  const auto keep = [&] {  // this warp's sums of a tile
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2;
      if (row < kRows) partials[((tile * kWarps + warp) * kRows + row) * kTile + g + i / 2 * 8] = total[i];
      total[i] = 0;
    }
  };
  const auto add = [&](const Quad& q) {
    const std::uint32_t scale_pairs[kQuad] = {q.scales.x, q.scales.y, q.scales.z, q.scales.w};
    const unsigned char* from = x_of_lane + 2 * kQuadValues * quad;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      uint4 b0{}, b1{};
      if (column) {
        b0 = load16(from + 2 * kBlock * i + swap);
        b1 = load16(from + 2 * kBlock * i + 16 - swap);
      }
      const std::uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
      const std::uint32_t above[2] = {q.codes[i].x, q.codes[i].y}, below[2] = {q.codes[i].z, q.codes[i].w};
      float sum[4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const std::uint32_t a[4] = {decode(table, above[s / 2], 2 * s % 4, lane4), decode(table, below[s / 2], 2 * s % 4, lane4),
                                    decode(table, above[s / 2], 2 * s % 4 + 1, lane4), decode(table, below[s / 2], 2 * s % 4 + 1, lane4)};
        if (s == 0)
          multiply_f16(sum, a, b[0], b[1]);
        else
          mma_f16(sum, a, b[2 * s], b[2 * s + 1]);
      }
      float scale_above, scale_below;
      unpack_f16(scale_pairs[i], scale_above, scale_below);
      total[0] = fmaf(scale_above, sum[0], total[0]);
      total[2] = fmaf(scale_below, sum[2], total[2]);
      if (kRows == 1) continue;
      total[1] = fmaf(scale_above, sum[1], total[1]);
      total[3] = fmaf(scale_below, sum[3], total[3]);
    }
    if (++quad < quads) return;
    keep();
    quad = 0;
    ++tile;
  };
#pragma unroll 1
  for (int done = 0; done < count; done += kAhead) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (done + s >= count) break;
      add(ahead[s]);
      bring(ahead[s]);
    }
  }
  if (quad > 0 && count > 0) keep();
  if (p.shrinks && thread == kThreads - 1) wait_for_shares(p, shares);
  __syncthreads();
  bf16* low = nullptr;
  if (p.shrinks) {
    low = reinterpret_cast<bf16*>(x);  // which nobody reads any more
    join_shares(p, shares, low);
    __syncthreads();
  }

  const auto sum_of = [&](int mine, int row, int r) {  // over the warps that have quads of the tile, in the order of K
    float sum = 0;
    for (int w = 0; w < kWarps; ++w)
      if (run_begin(w) < (mine + 1) * quads && run_begin(w + 1) > mine * quads && run_begin(w) < run_begin(w + 1)) sum += partials[((mine * kWarps + w) * kRows + row) * kTile + r];
    return sum;
  };
  for (int i = thread; i < own * kRows * kOutputs; i += kThreads) {
    const int r = i % kOutputs, row = i / kOutputs % kRows, mine = i / kOutputs / kRows;
    const float sum = sum_of(mine, row, r), up = kGated ? sum_of(mine, row, r + 8) : 0.0f;
    finish<kGated>(p, first + mine, r, row, sum, up, residual, i == thread, low);
  }
}

constexpr std::int64_t kShared = std::int64_t{228} << 10;       // of a multiprocessor
constexpr std::int64_t kBlockReserve = std::int64_t{2} << 10;  // what the system and static arrays take of each block

Products rows_of(const Products& p, std::int64_t first, std::int64_t count) {
  Products some = p;
  some.x = p.x.row_range(first, count);
  some.y = p.y.row_range(first, count);
  if (p.low.data != nullptr) some.low = p.low.row_range(first, count);
  if (p.residual.data != nullptr) some.residual = p.residual.row_range(first, count);
  if (p.adapters.adapter != nullptr) some.adapters.adapter += first;
  return some;
}

// How a product of so many rows is divided; no blocks: x does not fit into shared memory.
struct Division {
  std::int64_t tiles, warps, blocks, shared;
};
Division divide(const Products& p, bool gated, std::int64_t rows) {
  const std::int64_t tiles = gated ? p.first[1] / 8 : ceil_div(p.first[3], kTile);
  for (const std::int64_t warps : {8, 16}) {
    const std::int64_t resident = 16 / warps, blocks = std::min(tiles, resident * multiprocessors()), shared = shared_bytes(rows, p.x.cols, ceil_div(tiles, blocks), warps);
    if (resident * (shared + kBlockReserve) <= kShared) return {tiles, warps, blocks, shared};
  }
  return {tiles, 0, 0, 0};
}

template <int kRows, bool kGated>
void launch_rows(const Products& p, const Division& d, cudaStream_t stream) {
  launch_chained(stream, blocks(d.blocks), static_cast<unsigned>(d.warps * kWarp), d.shared, d.warps == 8 ? multiply<kRows, kGated, 8> : multiply<kRows, kGated, 16>, p,
                 static_cast<int>(d.tiles));
}

}  // namespace

bool multiply_few(const Products& p, bool gated, std::int64_t most, cudaStream_t stream) {
  while (most > 0 && divide(p, gated, most).blocks == 0) most /= 2;
  if (most == 0) return false;
  for (std::int64_t first = 0; first < p.x.rows; first += most) {
    const Products some = rows_of(p, first, std::min(most, p.x.rows - first));
    const std::int64_t rows = some.x.rows == 3 ? 4 : some.x.rows;
    const auto start = rows == 1   ? gated ? launch_rows<1, true> : launch_rows<1, false>
                       : rows == 2 ? gated ? launch_rows<2, true> : launch_rows<2, false>
                                   : gated ? launch_rows<4, true> : launch_rows<4, false>;
    start(some, divide(p, gated, rows), stream);
  }
  return true;
}

}  // namespace engine::cuda::nf4
