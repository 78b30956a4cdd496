// lora_rows.cu: shrink: one block for a row and one rank (of few rows, where latency counts) or eight (so that x is read less often); its threads divide K,
// in the same order either way. Reads 2 B · K for each rank of each row: the adapters' bytes when every row has its own, otherwise mostly from the
// second-level cache. Chained: values of A, all of them up to a K of 20,480 (4,096 with eight ranks), are under way before x is there.
// Expand: matrix products (mma.sync), a warp for 16 rows and 32 outputs, once for each adapter among the rows; what it reads of B
// for the first two adapters is under way before low is there. Where lanes hold what is of no use (rows of another adapter, ranks beyond the adapter's),
// results are left out or operands zero: nothing of one row gets into another's.
#include "core/error.h"
#include "cuda/ops/activation.cuh"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr std::int64_t kFewRows = 8;
constexpr int kExpandRows = 16, kWarpOutputs = 32, kBlockOutputs = kWarps * kWarpOutputs;

// kRanks of low's columns.
template <int kRanks>
__global__ void __launch_bounds__(kThreads) shrink(View<const bf16> x, RmsNorm norm, RowAdapters adapters, View<bf16> low) {
  constexpr unsigned kHeld = kRanks == 1 ? 10 : 2;  // times 8 values of each of a thread's ranks
  allow_next();
  SHARED_ARRAY(float, partial, kRanks * kWarps);
  const std::int64_t row = blockIdx.x, column = std::int64_t{blockIdx.y} * kRanks, part = column / adapters.ranks, first = column % adapters.ranks;
  const std::int32_t adapter = adapters.adapter[row];
  const LoraEntry entry = adapter < 0 ? LoraEntry{} : adapters.entries[adapter * adapters.parts + part];
  const bool none = adapter < 0 || first >= entry.rank;  // ranks are multiples of 8
  const auto units = static_cast<unsigned>(x.cols / 8);
  const bf16* a = none ? nullptr : entry.a + first * x.cols;
  uint4 held[kHeld][kRanks] = {};
#pragma unroll
  for (unsigned i = 0; i < kHeld; ++i)
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (!none && threadIdx.x + i * kThreads < units) held[i][r] = load16_once(a + r * x.cols + 8 * (threadIdx.x + i * kThreads));
  wait_for_previous();
  if (none) return;

  const bf16* from = x.row(row);
  float inverse = 0;
  if (norm.weight != nullptr) {
    float squares = 0;
    for (unsigned unit = threadIdx.x; unit < units; unit += kThreads) {
      float v[8];
      widen8(load16(from + 8 * unit), v);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    }
    inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(x.cols) + norm.eps);
  }
  float sums[kRanks] = {};
  const auto add = [&](unsigned unit, const uint4(&of_a)[kRanks]) {
    float v[8];
    widen8(load16(from + 8 * unit), v);
    if (norm.weight != nullptr) {
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) v[i] = widen(narrow(v[i] * (inverse * (norm.weight[8 * unit + i] + norm.offset))));
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      float u[8];
      widen8(of_a[r], u);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[r] = fmaf(u[i], v[i], sums[r]);
    }
  };
#pragma unroll
  for (unsigned i = 0; i < kHeld; ++i)
    if (threadIdx.x + i * kThreads < units) add(threadIdx.x + i * kThreads, held[i]);
#pragma unroll 2
  for (unsigned unit = threadIdx.x + kHeld * kThreads; unit < units; unit += kThreads) {
    uint4 of_a[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) of_a[r] = load16_once(a + r * x.cols + 8 * unit);
    add(unit, of_a);
  }
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane_id() == 0) partial[r * kWarps + static_cast<int>(threadIdx.x) / kWarp] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kRanks) return;
  float sum = 0;
  for (unsigned w = 0; w < kWarps; ++w) sum += partial[threadIdx.x * kWarps + w];
  low.row(row)[column + threadIdx.x] = narrow(entry.scale * sum);
}

// Blocks of one part's outputs.
ENGINE_DEVICE std::int64_t output_blocks(const LoraColumns& columns, int part) {
  return (columns.first_output[part + 1] - columns.first_output[part] + kBlockOutputs - 1) / kBlockOutputs;
}

// The lowest bit of a mask that has one, which is taken from it.
ENGINE_DEVICE unsigned take_lowest(unsigned& mask) {
  unsigned bit = 0;
  while ((mask >> bit & 1u) == 0) ++bit;
  mask &= mask - 1;
  return bit;
}

// y [16 rows, 32 outputs] of a warp; kGated: 16 of gate and the same of up, of which out [16 rows, 16] is made. In an mma, A's rows are the rows and B's
// columns the outputs; a lane's 4 neighbouring ranks are its pairs of both. What it reads comes in three turns: whose rows they are, where those adapters
// are and what they hold, all before low is there; then low and y.
template <bool kGated>
__global__ void __launch_bounds__(kThreads, 3) expand(View<const bf16> low, RowAdapters adapters, LoraColumns columns, View<bf16> y, View<bf16> out, bool gelu) {
  constexpr int kTiles = kWarpOutputs / 8, kParts = kGated ? 2 : 1, kEach = kTiles / kParts;
  allow_next();
  int part = 0;  // the first of the warp's
  std::int64_t block = blockIdx.y;
  if (!kGated)
    while (block >= output_blocks(columns, part)) block -= output_blocks(columns, part++);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(lane_id()), g = lane / 4, t = lane % 4;
  const std::int64_t row = std::int64_t{blockIdx.x} * kExpandRows, output = (block * kWarps + warp) * 8 * kEach,
                     outputs = columns.first_output[part + 1] - columns.first_output[part];
  const auto entry_of = [&](std::int32_t adapter, int p) -> const LoraEntry& { return adapters.entries[adapter * adapters.parts + part + p]; };

  const std::int32_t of_lane = lane < kExpandRows && row + lane < y.rows ? adapters.adapter[row + lane] : -1;
  bool is_first = of_lane >= 0;
#pragma unroll
  for (int r = 0; r < kExpandRows; ++r)
    if (shuffle(of_lane, static_cast<unsigned>(r)) == of_lane && r < lane) is_first = false;
  unsigned rest = warp_sum(is_first ? 1u << lane : 0u);  // the first row of each adapter
  const std::int32_t own[2] = {shuffle(of_lane, static_cast<unsigned>(g)), shuffle(of_lane, static_cast<unsigned>(g + 8))};
  std::int32_t own_ranks[2][kParts], most = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      own_ranks[half][p] = own[half] < 0 ? 0 : entry_of(own[half], p).rank;
      most = own_ranks[half][p] > most ? own_ranks[half][p] : most;
    }
#pragma unroll
  for (unsigned mask = kWarp / 2; mask != 0; mask /= 2) {
    const std::int32_t other = shuffle_xor(most, mask);
    most = other > most ? other : most;
  }

  struct Ranks {  // of B, 4 neighbouring ones for each of the lane's outputs
    std::uint32_t pairs[kTiles][2];
  };
  const auto load = [&](std::int32_t adapter, int rank) {
    Ranks b{};
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const LoraEntry entry = entry_of(adapter, p);
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        const std::int64_t at = output + 8 * n + g;
        if (at >= outputs || rank + 4 * t >= entry.rank) continue;
        const auto* from = reinterpret_cast<const std::uint32_t*>(entry.b + at * entry.rank + rank + 4 * t);
        b.pairs[p * kEach + n][0] = from[0];
        b.pairs[p * kEach + n][1] = from[1];
      }
    }
    return b;
  };
  std::int32_t early[2] = {-1, -1};
  Ranks held[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (rest == 0) continue;
    early[i] = shuffle(of_lane, take_lowest(rest));
    held[i] = load(early[i], 0);
  }
  wait_for_previous();

  std::uint32_t before[2][kTiles];
  const auto pair_at = [&](int half, int n) {
    return reinterpret_cast<std::uint32_t*>(y.row(row + g + 8 * half) + columns.first_output[part + n / kEach] + output + 8 * (n % kEach) + 2 * t);
  };
  const auto is_there = [&](int half, int n) { return row + g + 8 * half < y.rows && output + 8 * (n % kEach) + 2 * t < outputs; };
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < kTiles; ++n) before[half][n] = is_there(half, n) && (kGated || own[half] >= 0) ? *pair_at(half, n) : 0;
  float sums[kTiles][4] = {};
  for (int rank = 0; rank < most; rank += 16) {
    std::uint32_t lows[kParts][4] = {};
#pragma unroll
    for (int p = 0; p < kParts; ++p)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (rank + 4 * t < own_ranks[half][p]) {
          const auto* from = reinterpret_cast<const std::uint32_t*>(low.row(row + g + 8 * half) + (part + p) * adapters.ranks + rank + 4 * t);
          lows[p][half] = from[0];
          lows[p][2 + half] = from[1];
        }
    const auto add = [&](std::int32_t adapter, const Ranks& b) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        float c[4] = {};
        const std::uint32_t(&a)[4] = lows[n / kEach];
        mma(c, {own[0] == adapter ? a[0] : 0, own[1] == adapter ? a[1] : 0, own[0] == adapter ? a[2] : 0, own[1] == adapter ? a[3] : 0}, b.pairs[n][0], b.pairs[n][1]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (own[i / 2] == adapter) sums[n][i] += c[i];
      }
    };
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (early[i] >= 0) add(early[i], rank == 0 ? held[i] : load(early[i], rank));
    for (unsigned others = rest; others != 0;) {
      const std::int32_t adapter = shuffle(of_lane, take_lowest(others));
      add(adapter, load(adapter, rank));
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    std::uint32_t after[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) after[n] = pack(widen_low(before[half][n]) + sums[n][2 * half], widen_high(before[half][n]) + sums[n][2 * half + 1]);
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      if (!is_there(half, n)) continue;
      if constexpr (kGated) {
        const std::uint32_t gate = after[n], up = after[kEach + n];
        *reinterpret_cast<std::uint32_t*>(out.row(row + g + 8 * half) + output + 8 * n + 2 * t) =
            pack(activate(widen_low(gate), gelu) * widen_low(up), activate(widen_high(gate), gelu) * widen_high(up));
      } else if (own[half] >= 0) {
        *pair_at(half, n) = after[n];
      }
    }
  }
}

void check(const RowAdapters& adapters, View<const bf16> low) {
  require(adapters.entries != nullptr && adapters.parts >= 1 && adapters.parts <= 3, "adapters of ", adapters.parts, " parts; use 1 to 3");
  require(adapters.ranks >= 8 && adapters.ranks <= 256 && adapters.ranks % 8 == 0, "adapters of rank ", adapters.ranks, "; use a multiple of 8 up to 256");
  require(low.cols >= adapters.parts * adapters.ranks, "low has ", low.cols, " columns for ", adapters.parts, " parts of rank ", adapters.ranks);
}

}  // namespace

void lora_rows_shrink(View<const bf16> x, const RmsNorm& norm, const RowAdapters& adapters, View<bf16> low, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == x.rows && x.cols % 8 == 0, "x is ", x.rows, "x", x.cols, ", low has ", low.rows, " rows");
  const std::int64_t columns = adapters.parts * adapters.ranks, each = x.rows <= kFewRows ? 1 : 8;
  launch_chained(stream, dim3(blocks(x.rows), blocks(columns / each)), kThreads, 0, each == 1 ? shrink<1> : shrink<8>, x, norm, adapters, low);
}

void lora_rows_expand(View<const bf16> low, const RowAdapters& adapters, const LoraColumns& columns, View<bf16> y, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == y.rows, "low has ", low.rows, " rows, y ", y.rows);
  std::int64_t tiles = 0;
  for (int part = 0; part < adapters.parts; ++part) {
    const std::int64_t outputs = columns.first_output[part + 1] - columns.first_output[part];
    require(outputs >= 0 && outputs % 2 == 0, "part ", part, " has ", outputs, " outputs; they come in pairs");
    tiles += ceil_div(outputs, kBlockOutputs);
  }
  launch_chained(stream, dim3(blocks(ceil_div(y.rows, kExpandRows)), blocks(tiles)), kThreads, 0, expand<false>, low, adapters, columns, y, View<bf16>{}, false);
}

void lora_rows_expand_gated(Activation act, View<const bf16> low, const RowAdapters& adapters, View<bf16> gate_up, View<bf16> y, cudaStream_t stream) {
  check(adapters, low);
  require(low.rows == y.rows && gate_up.rows == y.rows, "low has ", low.rows, " rows, gate and up ", gate_up.rows, ", y ", y.rows);
  require(adapters.parts == 2 && gate_up.cols == 2 * y.cols && y.cols % 2 == 0, "gate and up have ", gate_up.cols, " columns in ", adapters.parts, " parts, y ", y.cols);
  launch_chained(stream, dim3(blocks(ceil_div(y.rows, kExpandRows)), blocks(ceil_div(y.cols, kBlockOutputs / 2))), kThreads, 0, expand<true>, low, adapters,
                 LoraColumns{{0, y.cols, 2 * y.cols, 0}}, gate_up, y, act == Activation::gelu_tanh);
}

}  // namespace engine::cuda
