// nf4_gemv_rows.cu: 5 to 64 rows. The units of work are 128 outputs by 128 values of K, counted along K first; every thread block takes an equal share of
// them in a row, so that all multiprocessors end together whatever the shape. Sums of an output that several blocks share are joined by the last of them,
// in the order of K: the shares depend on the shape alone, so a row's bits do not depend on the others.
//   A warp has 32 outputs and one of a unit's two blocks of 64: it decodes 2,048 weights into the registers of 8 A operands, then multiplies them by 8 rows
//   of x after another. Floors: 0.516 B · N · K over memory bandwidth, up to about 32 rows; then 2 · rows · N · K over the rate of mma.sync.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/nf4_products.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda::nf4 {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kOutputs = 128, kTiles = kOutputs / kTile;
constexpr int kUnit = 2 * kBlock;
constexpr int kStages = 4;  // units under way, in the table's free half: 1 KB for each warp
static_assert(8 * kWarps * kStages == 256);

// A walk along the units: number `k` of K, of a group of outputs.
struct Walk {
  int group, k;
  ENGINE_DEVICE Walk(int unit, int depth) : group(unit / depth), k(unit % depth) {}
  ENGINE_DEVICE void step(int depth) {
    if (++k < depth) return;
    k = 0;
    ++group;
  }
};

// kColumns · 8 rows of x.
template <int kColumns>
struct Layout {
  static constexpr int kRows = 8 * kColumns;
  static constexpr int kXBytes = kRows * kUnit * 2;                         // of one unit's x
  static constexpr int kPieces = (kRows * kUnit / 8 + kThreads - 1) / kThreads;  // of 16 bytes, for each thread
  static constexpr int kSums = kOutputs * kRows;
  static constexpr std::int64_t kShared = kTableBytes + 2 * kXBytes + 4 * (3 * 256 + kSums);
};

// What share of `units` block b of `grid` takes begins at unit…
ENGINE_DEVICE std::int64_t first_unit(std::int64_t block, std::int64_t units, std::int64_t grid) { return block * units / grid; }
// …and who has a unit.
ENGINE_DEVICE std::int64_t owner(std::int64_t unit, std::int64_t units, std::int64_t grid) { return ((unit + 1) * grid - 1) / units; }

template <int kColumns, bool kGated>
__global__ void __launch_bounds__(kThreads, 1) multiply(Products p, int groups) {
  using L = Layout<kColumns>;
  allow_next();
  auto* table = static_cast<unsigned char*>(block_shared());
  unsigned char* x = table + kTableBytes;
  auto* maps = reinterpret_cast<float*>(x + 2 * L::kXBytes);
  float* sums = maps + 3 * 256;  // of kOutputs, in the order [part of 32][tile][column][register][lane]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const int part = warp / 2, half = warp % 2;  // of the outputs, of a unit
  const int blocks = static_cast<int>(p.x.cols / kBlock), depth = (blocks + 1) / 2;  // units along K
  const std::int64_t units = std::int64_t{groups} * depth;
  const auto first = static_cast<int>(first_unit(blockIdx.x, units, gridDim.x)), last = static_cast<int>(first_unit(blockIdx.x + 1, units, gridDim.x));

  // Weights: lane l brings this warp's block of row l of its 32 (32 bytes), and what its scale is made from.
  unsigned char* ring = table + 2048 * kStages * warp + 128;
  unsigned char* slot_of_lane = ring + lane / 4 * 256 + lane % 4 * 32;
  ScaleParts scales[kStages] = {};
  RowScales of[kStages] = {};
  Walk ahead(first, depth);
  int left = last - first, group_ahead = -1;  // units that are still to be brought
  const std::uint8_t* codes_ahead = nullptr;
  RowScales row_ahead{};
  const auto bring = [&](int stage, ScaleParts& scale, RowScales& row) {
    if (left-- > 0) {
      if (ahead.group != group_ahead) {
        group_ahead = ahead.group;
        const TileRow at = tile_row<kGated>(p, kTiles * ahead.group + 2 * part + lane / kTile, lane % kTile);  // one that is not there: the first
        const DeviceNf4& w = p.weight[at.part < 0 ? 0 : at.part];
        codes_ahead = w.codes + std::int64_t{at.row} * (p.x.cols / 2);
        row_ahead = row_scales(w, at.part < 0 ? 0 : at.part, at.row * blocks);
      }
      const int wanted = 2 * ahead.k + half, block = wanted < blocks ? wanted : blocks - 1;  // beyond the last: any, times zeros of x
      copy_async16(slot_of_lane + 2048 * stage, codes_ahead + (kBlock / 2) * block);
      copy_async16(slot_of_lane + 2048 * stage + 16, codes_ahead + (kBlock / 2) * block + 16);
      scale = load_scale(row_ahead, block);
      row = row_ahead;
    }
    copy_async_commit();
    ahead.step(depth);
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) bring(s, scales[s], of[s]);
  fill_table(table, p.book);
  copy_maps(p, maps);
  wait_for_previous();

  // x: piece i of a unit is 8 values of row i / 16. Chunks of odd rows are swapped in pairs: neighbouring rows lie in different banks.
  uint4 pieces[L::kPieces] = {};
  const int row_of_thread = thread / 16, column_of_thread = thread % 16 * 8;
  const bf16* x_of_thread = p.x.row(row_of_thread) + column_of_thread;
  const auto load_x = [&](int unit_of_k) {
    const int k = unit_of_k * kUnit;
    const bool inside = k + column_of_thread < static_cast<int>(p.x.cols);
#pragma unroll
    for (int i = 0; i < L::kPieces; ++i)
      pieces[i] = inside && row_of_thread + i * (kThreads / 16) < static_cast<int>(p.x.rows) ? load16(x_of_thread + i * (kThreads / 16) * p.x.stride + k) : uint4{};
  };
  const auto store_x = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < L::kPieces; ++i) {
      const int piece = thread + i * kThreads, row = piece / 16, chunk = piece % 16;
      if (row >= L::kRows) continue;
      float values[8];
      widen8(pieces[i], values);
      store16(x + buffer * L::kXBytes + row * 2 * kUnit + 16 * (chunk ^ (row & 1)), to_operand(values));
    }
  };
  Walk at(first, depth);
  load_x(at.k);
  store_x(0);
  __syncthreads();

  const std::uint32_t lane4 = 4u * static_cast<unsigned>(lane);
  const unsigned char* codes_of_lane = ring + g / 4 * 256 + g % 4 * 32 + 8 * t;
  const unsigned char* x_of_lane = x + g * 2 * kUnit + 2 * kBlock * half + 32 * t;
  const int swap = 16 * (g & 1);
  float total[2][kColumns][4] = {};

  int begun = first;  // of the group at hand
#pragma unroll 1
  for (int unit = first; unit < last; ++unit) {
    const int stage = (unit - first) & (kStages - 1), buffer = (unit - first) & 1;
    const int group = at.group;
    at.step(depth);  // to the next
    if (unit + 1 < last) load_x(at.k);
    copy_async_wait<kStages - 1>();
    sync_warp();
    uint2 codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = *reinterpret_cast<const uint2*>(codes_of_lane + 2048 * stage + 512 * i);
    const float scale = scale_of(of[0], scales[0], maps);
    sync_warp();  // all have their codes
#pragma unroll
    for (int s = 0; s + 1 < kStages; ++s) {
      scales[s] = scales[s + 1];
      of[s] = of[s + 1];
    }
    bring(stage, scales[kStages - 1], of[kStages - 1]);

    std::uint32_t a[2][4][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const std::uint32_t above = s < 2 ? codes[2 * m].x : codes[2 * m].y, below = s < 2 ? codes[2 * m + 1].x : codes[2 * m + 1].y;
        a[m][s][0] = decode(table, above, 2 * s % 4, lane4);
        a[m][s][1] = decode(table, below, 2 * s % 4, lane4);
        a[m][s][2] = decode(table, above, 2 * s % 4 + 1, lane4);
        a[m][s][3] = decode(table, below, 2 * s % 4 + 1, lane4);
      }
    float row_scale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) row_scale[i] = shuffle(scale, static_cast<unsigned>(g + 8 * i));
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const unsigned char* from = x_of_lane + buffer * L::kXBytes + 8 * n * 2 * kUnit;
      const uint4 b0 = load16(from + swap), b1 = load16(from + 16 - swap);
      const std::uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
      float sum[2][4] = {};
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int m = 0; m < 2; ++m) mma_f16(sum[m], a[m][s], b[2 * s], b[2 * s + 1]);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[m][n][i] = fmaf(row_scale[2 * m + i / 2], sum[m][i], total[m][n][i]);
    }
    if (unit + 1 < last) store_x(1 - buffer);
    __syncthreads();

    if (unit + 1 < last && at.group == group) continue;

    // The end of this block's part of the group: the two halves of K are joined.
    float* mine = sums + part * 2 * kColumns * 4 * kWarp + lane;
    for (int turn = 1; turn >= 0; --turn) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& there = mine[((m * kColumns + n) * 4 + i) * kWarp];
            if (half == turn) there = turn == 1 ? total[m][n][i] : total[m][n][i] + there;
          }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[m][n][i] = 0;

    const std::int64_t group_first = std::int64_t{group} * depth, first_owner = owner(group_first, units, gridDim.x),
                       last_owner = owner(group_first + depth - 1, units, gridDim.x);
    bool whole = first_owner == last_owner;
    if (!whole) {
      // A block's first part lies in its first slot, its last in the second.
      float* slot = p.partials + (2 * std::int64_t{blockIdx.x} + (begun == first ? 0 : 1)) * L::kSums;
      for (int i = 4 * thread; i < L::kSums; i += 4 * kThreads) store16(slot + i, load16(sums + i));
      __syncthreads();
      SHARED_ARRAY(unsigned, arrived, 1);
      if (thread == 0) *arrived = count_arrival(p.arrivals + group);
      __syncthreads();
      whole = *arrived == last_owner - first_owner;  // the others are there
      if (whole) {
        acquire();
        if (thread == 0) p.arrivals[group] = 0;
        for (int i = 4 * thread; i < L::kSums; i += 4 * kThreads) {
          float joined[4] = {};
          for (std::int64_t b = first_owner; b <= last_owner; ++b) {
            const bool second = b == first_owner && first_unit(b, units, gridDim.x) < group_first;
            float more[4];
            load_floats4(p.partials + (2 * b + (second ? 1 : 0)) * L::kSums + i, more);
#pragma unroll
            for (int j = 0; j < 4; ++j) joined[j] += more[j];
          }
          store_floats4(sums + i, joined);
        }
        __syncthreads();
      }
    }
    if (whole) {
      const auto sum_of = [&](int output, int row) {
        const int within = output % kTile, column = row / 8;
        const int owner_lane = within % 8 * 4 + row % 8 / 2, reg = within / 8 * 2 + row % 2;
        return sums[((output / kTile * kColumns + column) * 4 + reg) * kWarp + owner_lane];
      };
      constexpr int kEach = kGated ? kOutputs / 2 : kOutputs;
      for (int i = thread; i < kEach * L::kRows; i += kThreads) {
        const int row = i / kEach, column = i % kEach;
        const int tile = kGated ? column / 8 : column / kTile, r = kGated ? column % 8 : column % kTile;
        finish<kGated>(p, kTiles * group + tile, r, row, sum_of(tile * kTile + r, row), kGated ? sum_of(tile * kTile + r + 8, row) : 0.0f);
      }
    }
    __syncthreads();  // the sums are free again
    begun = unit + 1;
  }
}

template <int kColumns>
void launch_columns(const Products& p, bool gated, std::int64_t groups, cudaStream_t stream) {
  const std::int64_t units = groups * ceil_div(p.x.cols, kUnit);  // everyone has one at least
  launch_chained(stream, blocks(std::min<std::int64_t>(multiprocessors(), units)), kThreads, Layout<kColumns>::kShared, gated ? multiply<kColumns, true> : multiply<kColumns, false>, p,
                 static_cast<int>(groups));
}

}  // namespace

std::int64_t partials_bytes(std::int64_t rows) { return std::int64_t{2} * multiprocessors() * kOutputs * (rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64) * 4; }

void multiply_rows(const Products& p, bool gated, cudaStream_t stream) {
  const std::int64_t rows = p.x.rows, tiles = gated ? p.first[1] / 8 : ceil_div(p.first[3], kTile), groups = ceil_div(tiles, kTiles);
  require(p.norm.weight == nullptr, "x of ", p.x.cols, " columns cannot be normalized on the way in");
  require(p.partials != nullptr, "a product of ", rows, " rows needs a workspace");
  require(groups <= kMostGroups, "a product of ", p.first[3], " outputs");
  (rows <= 8 ? launch_columns<1> : rows <= 16 ? launch_columns<2> : rows <= 32 ? launch_columns<4> : launch_columns<8>)(p, gated, groups, stream);
}

}  // namespace engine::cuda::nf4
