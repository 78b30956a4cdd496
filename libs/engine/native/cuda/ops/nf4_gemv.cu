// nf4_gemv.cu: 1 to 4 rows: one block on each multiprocessor; its warps share the tiles it owns, 128 values of K after 128, and x lies whole in its memory.
//   Floor: 0.516 B · N · K over memory bandwidth, which is 36 weights a cycle on each of an H200's multiprocessors at 1.75 GHz. For 2,048 weights a warp
//   issues about 170 instructions and takes about 64 cycles of shared memory, half of them the table: 32 to 36 weights a cycle.
//   Chained: the table is made and the first weights are under way before the kernel that computes x has ended; half of a multiprocessor's threads,
//   registers and shared memory are left for the next kernel to do the same.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/lora_fold.cuh"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/nf4_products.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace nf4 {
namespace {

constexpr int kWarps = 14, kThreads = kWarps * kWarp;  // 28 units along a K of 3,584 are two for each
constexpr int kUnit = 2 * kBlock;  // values of a tile's rows that a warp takes at a time
constexpr int kStages = 2;         // units of a warp under way: 2 · 14 · 1 KB, in the table's free half
static_assert(kStages == 2);       // the loop below keeps what belongs to each by hand
static_assert(8 * kWarps * kStages <= 256, "the table has 256 free pieces of 128 bytes; a unit takes eight");

constexpr std::int64_t padded(std::int64_t depth) { return (depth + kUnit - 1) / kUnit * kUnit; }

// A block's memory: the table, x [rows][padded K] as fp16, maps [3][256], partial [own tiles][kWarps][rows][kTile].
std::int64_t shared_bytes(std::int64_t rows, std::int64_t depth, std::int64_t own) {
  return kTableBytes + 2 * rows * padded(depth) + 4 * (3 * 256 + own * kWarps * rows * kTile);
}

// A warp's way through the units of its thread block: unit number u is the u % units-th of tile u / units.
struct Walk {
  int tile, unit;  // tile: counted within the thread block
  ENGINE_DEVICE Walk(int warp, int units) : tile(warp / units), unit(warp % units) {}
  ENGINE_DEVICE void step(int units, int whole, int rest) {  // whole, rest: of kWarps / units
    tile += whole;
    unit += rest;
    if (unit >= units) {
      unit -= units;
      ++tile;
    }
  }
};

// x, normalized if asked for, as fp16; zeros behind K. 16-byte chunks of odd rows are swapped in pairs: neighbouring rows lie in different banks.
template <int kRows>
ENGINE_DEVICE void stage_rows(const Products& p, unsigned char* to) {
  const int units = static_cast<int>(p.x.cols / 8), all = static_cast<int>(padded(p.x.cols) / 8), thread = static_cast<int>(threadIdx.x);
  const auto at = [&](int row, int unit) { return to + 16 * (row * all + (unit ^ (row & 1))); };
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const bool there = row < p.x.rows;
    const bf16* from = p.x.row(there ? row : 0);
    if (p.norm.weight == nullptr) {
      for (int unit = thread; unit < all; unit += kThreads) {
        float values[8];
        widen8(there && unit < units ? load16(from + 8 * unit) : uint4{}, values);
        store16(at(row, unit), to_operand(values));
      }
      continue;
    }
    float squares = 0;
    for (int unit = thread; unit < all; unit += kThreads) {
      const uint4 raw = there && unit < units ? load16(from + 8 * unit) : uint4{};
      store16(at(row, unit), raw);  // read again by this thread alone
      float values[8];
      widen8(raw, values);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(values[i], values[i], squares);
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(p.x.cols) + p.norm.eps);
    for (int unit = thread; unit < units; unit += kThreads) {
      float values[8], weight[8];
      widen8(load16(at(row, unit)), values);
      load_floats4(p.norm.weight + 8 * unit, weight);
      load_floats4(p.norm.weight + 8 * unit + 4, weight + 4);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = widen(narrow(values[i] * (inverse * (weight[i] + p.norm.offset))));
      store16(at(row, unit), to_operand(values));
    }
  }
}

template <int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads, 2) multiply(Products p, int tiles) {
  allow_next();
  auto* table = static_cast<unsigned char*>(block_shared());
  unsigned char* x = table + kTableBytes;
  auto* maps = reinterpret_cast<float*>(x + 2 * kRows * padded(p.x.cols));
  float* partials = maps + 3 * 256;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const int blocks = static_cast<int>(p.x.cols / kBlock), units = (blocks + 1) / 2, whole = kWarps / units, rest = kWarps % units;
  const int grid = static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x);
  const int own = (tiles - first + grid - 1) / grid;           // tiles of this thread block: first, first + grid …
  const int steps = (own * units + kWarps - 1) / kWarps;  // of every warp; those beyond the last unit count for nothing

  // Lane l brings block l % 2 of row l / 2 of a unit (32 bytes), and what its scale is made from. A row that is not there is the first: nobody looks.
  unsigned char* ring = table + 2048 * warp * kStages + 128;
  unsigned char* slot_of_lane = ring + lane % 2 * 1024 + lane / 8 * 256 + lane / 2 % 4 * 32;
  ScaleParts scales[kStages] = {};
  RowScales of[kStages] = {};
  Walk ahead(warp, units);
  int tile_ahead = -1;
  const std::uint8_t* codes_ahead = nullptr;  // of this lane's row
  RowScales row_ahead{};
  const auto bring = [&](int stage, ScaleParts& scale, RowScales& row) {
    if (ahead.tile < own) {
      if (ahead.tile != tile_ahead) {
        tile_ahead = ahead.tile;
        const TileRow at = tile_row<kGated>(p, first + grid * ahead.tile, lane / 2);
        const DeviceNf4& w = p.weight[at.part < 0 ? 0 : at.part];
        codes_ahead = w.codes + std::int64_t{at.row} * (p.x.cols / 2);
        row_ahead = row_scales(w, at.part < 0 ? 0 : at.part, at.row * blocks);
      }
      const int block = 2 * ahead.unit + lane % 2 < blocks ? 2 * ahead.unit + lane % 2 : blocks - 1;  // beyond the last: any, times zeros of x
      copy_async16(slot_of_lane + 2048 * stage, codes_ahead + (kBlock / 2) * block);
      copy_async16(slot_of_lane + 2048 * stage + 16, codes_ahead + (kBlock / 2) * block + 16);
      scale = load_scale(row_ahead, block);
      row = row_ahead;
    }
    copy_async_commit();
    ahead.step(units, whole, rest);
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) bring(s, scales[s], of[s]);
  fill_table(table, p.book);
  copy_maps(p, maps);
  wait_for_previous();
  stage_rows<kRows>(p, x);
  __syncthreads();

  const std::uint32_t lane4 = 4u * static_cast<unsigned>(lane);
  const unsigned char* codes_of_lane = ring + g / 4 * 256 + g % 4 * 32 + 8 * t;
  const bool column = g < kRows;  // the columns beyond hold anything: nobody looks at their sums
  const int swap = column ? 16 * (g & 1) : 0;
  const unsigned char* x_of_lane = x + (column ? g : 0) * static_cast<int>(2 * padded(p.x.cols)) + 32 * t;
  float total[4] = {};
  const auto keep = [&](int tile) {  // this warp's sums of a tile
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2;
      if (row < kRows) partials[((tile * kWarps + warp) * kRows + row) * kTile + g + i / 2 * 8] = total[i];
      total[i] = 0;
    }
  };
  Walk at(warp, units);
  int tile = at.tile;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    if (at.tile != tile) {
      if (tile < own) keep(tile);
      tile = at.tile;
    }
    copy_async_wait<kStages - 1>();
    sync_warp();
    uint2 upper[2], lower[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      upper[half] = *reinterpret_cast<const uint2*>(codes_of_lane + 2048 * stage + 1024 * half);
      lower[half] = *reinterpret_cast<const uint2*>(codes_of_lane + 2048 * stage + 1024 * half + 512);
    }
    const float scale = scale_of(of[0], scales[0], maps);
    sync_warp();  // all have their codes
    scales[0] = scales[1];
    of[0] = of[1];
    bring(stage, scales[1], of[1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned char* from = x_of_lane + 2 * kUnit * at.unit + 2 * kBlock * half;
      const uint4 b0 = load16(from + swap), b1 = load16(from + 16 - swap);
      const std::uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
      float sum[4] = {};
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const std::uint32_t above = s < 2 ? upper[half].x : upper[half].y, below = s < 2 ? lower[half].x : lower[half].y;
        const std::uint32_t a[4] = {decode(table, above, 2 * s % 4, lane4), decode(table, below, 2 * s % 4, lane4), decode(table, above, 2 * s % 4 + 1, lane4),
                                    decode(table, below, 2 * s % 4 + 1, lane4)};
        mma_f16(sum, a, b[2 * s], b[2 * s + 1]);
      }
      const unsigned from_lane = 2 * static_cast<unsigned>(g) + static_cast<unsigned>(half);
      const float scale_above = shuffle(scale, from_lane), scale_below = shuffle(scale, from_lane + 16);
      total[0] = fmaf(scale_above, sum[0], total[0]);
      total[1] = fmaf(scale_above, sum[1], total[1]);
      total[2] = fmaf(scale_below, sum[2], total[2]);
      total[3] = fmaf(scale_below, sum[3], total[3]);
    }
    at.step(units, whole, rest);
  }
  if (tile < own) keep(tile);
  __syncthreads();

  // A warp's unit of tile i has number ≡ warp (mod kWarps): where K is short, some warps have none.
  const auto sum_of = [&](int i, int row, int r) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int later = (w - i * units % kWarps + kWarps) % kWarps;
      if (later < units) sum += partials[((i * kWarps + w) * kRows + row) * kTile + r];
    }
    return sum;
  };
  constexpr int kOutputs = kGated ? kTile / 2 : kTile;
  for (int i = thread; i < own * kRows * kOutputs; i += kThreads) {
    const int r = i % kOutputs, row = i / kOutputs % kRows, mine = i / kOutputs / kRows;
    finish<kGated>(p, static_cast<int>(blockIdx.x) + grid * mine, r, row, sum_of(mine, row, r), kGated ? sum_of(mine, row, r + 8) : 0.0f);
  }
}

constexpr std::int64_t kMostShared = std::int64_t{227} << 10;  // of a block

template <int kRows>
void launch_rows(const Products& p, bool gated, std::int64_t tiles, std::int64_t grid, cudaStream_t stream) {
  launch_chained(stream, blocks(grid), kThreads, shared_bytes(kRows, p.x.cols, ceil_div(tiles, grid)), gated ? multiply<kRows, true> : multiply<kRows, false>, p,
                 static_cast<int>(tiles));
}

// All but the weights.
Products make_products(View<const bf16> x, View<bf16> y, const GemvExtras& extras) {
  require(x.rows >= 1 && x.rows <= kGemvRows, x.rows, " rows; a product by vectors takes 1 to ", kGemvRows);
  return {.x = x, .weight = {}, .codes = nullptr, .scales = nullptr, .unit = {1, 1, 1}, .first = {}, .norm = extras.norm, .bias = extras.bias, .low = extras.low,
          .adapters = extras.adapters, .residual = extras.residual, .y = y, .book = nf4_book(), .gelu = false, .shrinks = extras.adapters.entries != nullptr && extras.low.data == nullptr,
          .arrivals = static_cast<unsigned*>(extras.workspace),
          .partials = extras.workspace == nullptr ? nullptr : reinterpret_cast<float*>(static_cast<unsigned*>(extras.workspace) + kMostGroups)};
}

// With the outputs of each part known.
void check(const Products& p, bool gated) {
  const std::int64_t outputs = p.first[3], columns = gated ? outputs / 2 : outputs;
  require(outputs > 0 && outputs < std::int64_t{1} << 30, "a product of ", outputs, " outputs");
  require(!gated || (p.first[1] == columns && p.first[2] == outputs && columns % 8 == 0 && p.residual.data == nullptr),
          "a gated product takes a gate and an up of the same rows, a multiple of 8, and no residual");
  require(p.y.rows == p.x.rows && p.y.cols == columns, "the result is ", p.y.rows, "x", p.y.cols, " for ", p.x.rows, " rows and ", columns, " columns");
  require(p.norm.weight == nullptr || (p.x.rows <= kGemvNormRows && p.x.cols <= 16384), "x is normalized on the way in for at most ", kGemvNormRows,
          " rows of 16384; there are ", p.x.rows, " of ", p.x.cols);
  require(p.residual.data == nullptr || (p.residual.rows == p.y.rows && p.residual.cols == p.y.cols), "the residual is ", p.residual.rows, "x", p.residual.cols,
          ", the result ", p.y.rows, "x", p.y.cols);
  require(!p.shrinks || (p.codes != nullptr && p.arrivals != nullptr && nf4_gemv_shrinks(p.x.rows, p.x.cols, p.adapters)),
          "adapters without their shrunk rows, and with a workspace, are for packed weights and at most ", kGemvNormRows, " rows; there are ", p.x.rows);
  require(p.adapters.entries == nullptr || p.shrinks || (p.low.rows == p.x.rows && p.low.cols >= p.adapters.parts * p.adapters.ranks && p.adapters.ranks % 8 == 0),
          "the adapters' rows are ", p.low.rows, "x", p.low.cols, " for ", p.adapters.parts, " parts of rank ", p.adapters.ranks);
}

Products with_weights(Products p, const GemvWeights& weights, bool gated) {
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    p.first[i] = static_cast<std::int32_t>(outputs);
    if (weights[i].data == nullptr) continue;
    require(weights[i].cols == p.x.cols && p.x.cols % kBlock == 0, "rows of ", p.x.cols, " values with a weight of ", weights[i].cols, "; the device takes multiples of ", kBlock);
    p.weight[i] = device_nf4(weights[i]);
    outputs += weights[i].rows;
  }
  p.first[3] = static_cast<std::int32_t>(outputs);
  check(p, gated);
  return p;
}

Products with_packed(Products p, const PackedNf4& weight, bool gated) {
  require(weight.cols == p.x.cols, "rows of ", p.x.cols, " values with a weight of ", weight.cols);
  require(weight.gated == gated, "a weight is packed for a gated product or for a plain one; this is the other");
  p.codes = weight.codes;
  p.scales = weight.scales;
  std::ranges::copy(weight.unit, p.unit);
  std::ranges::copy(weight.first, p.first);
  check(p, gated);
  return p;
}

void multiply_packed(const Products& p, bool gated, bool same_order, cudaStream_t stream) {
  const bool together = (p.x.rows > 4 || same_order) && has_warpgroup_products();  // without those: a few rows after another
  require(!p.shrinks || !same_order, "with one order for any rows low is given");
  if (!together && multiply_few(p, gated, same_order ? 1 : 4, stream)) return;
  require(!p.shrinks, "rows of ", p.x.cols, " values do not fit into shared memory; low has to be given");
  multiply_packed_rows(p, gated, stream);
}

void multiply(const Products& p, bool gated, cudaStream_t stream) {
  const std::int64_t tiles = gated ? p.first[1] / 8 : ceil_div(p.first[3], kTile), grid = std::min<std::int64_t>(tiles, multiprocessors());
  const std::int64_t rows = p.x.rows == 3 ? 4 : p.x.rows;
  const auto fits = [&](std::int64_t count) { return shared_bytes(count, p.x.cols, ceil_div(tiles, grid)) <= kMostShared; };
  if (rows <= 4 && fits(rows)) return (rows == 1 ? launch_rows<1> : rows == 2 ? launch_rows<2> : launch_rows<4>)(p, gated, tiles, grid, stream);
  if (rows > 4 || !fits(1)) return multiply_rows(p, gated, stream);
  for (std::int64_t row = 0; row < p.x.rows; ++row) {  // a very long x: row by row
    Products one = p;
    one.x = p.x.row_range(row, 1);
    one.y = p.y.row_range(row, 1);
    if (p.low.data != nullptr) one.low = p.low.row_range(row, 1);
    if (p.residual.data != nullptr) one.residual = p.residual.row_range(row, 1);
    if (p.adapters.adapter != nullptr) one.adapters.adapter += row;
    launch_rows<1>(one, gated, tiles, grid, stream);
  }
}

}  // namespace
}  // namespace nf4

namespace {
constexpr std::int64_t kMostShrunk = 768, kMostPieces = 8;  // columns of low that a product makes, shares along K
}

std::int64_t nf4_gemv_workspace(std::int64_t rows) {
  const std::int64_t plain = rows <= kGemvNormRows ? 4 * rows * kMostShrunk * kMostPieces : nf4::partials_bytes(rows);
  return 4 * nf4::kMostGroups + std::max(plain, nf4::packed_partials_bytes(rows));
}

bool nf4_gemv_shrinks(std::int64_t rows, std::int64_t depth, const RowAdapters& adapters) {
  const std::int64_t columns = adapters.parts * adapters.ranks;
  return rows <= kGemvNormRows && columns <= std::min(kMostShrunk, depth) && depth <= kMostPieces * nf4::kShareValues;
}

void nf4_gemv(View<const bf16> x, const GemvWeights& weights, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::multiply(nf4::with_weights(nf4::make_products(x, y, extras), weights, false), false, stream);
}

void nf4_gemv_gated(Activation act, View<const bf16> x, const GemvWeights& weights, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::Products p = nf4::with_weights(nf4::make_products(x, y, extras), weights, true);
  p.gelu = act == Activation::gelu_tanh;
  nf4::multiply(p, true, stream);
}

void nf4_gemv(View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::multiply_packed(nf4::with_packed(nf4::make_products(x, y, extras), weight, false), false, extras.same_order, stream);
}

void nf4_gemv_gated(Activation act, View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::Products p = nf4::with_packed(nf4::make_products(x, y, extras), weight, true);
  p.gelu = act == Activation::gelu_tanh;
  nf4::multiply_packed(p, true, extras.same_order, stream);
}

}  // namespace engine::cuda
