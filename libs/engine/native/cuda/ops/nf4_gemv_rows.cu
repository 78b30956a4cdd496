// nf4_gemv_rows.cu: products of 1 to 64 rows with packed NF4 weights, on warpgroup products: weights are the left operand, made in registers, rows of
// x the right one, which the tensor cores read from shared memory.
//   A unit of work is a group of tiles, one for each warp, by 256 values of K; units are counted along K first. Every thread block takes the same number of
//   them in a row, the fewest that will do, so that all multiprocessors end together whatever the shape. Sums of a tile that several blocks share are joined
//   by the last of them, in the order of K: the shares depend on the shape and the tiles of a group alone, so a row's bits do not depend on the others.
//   Of 64 values of K a warp reads its tile's 1,024 codes by one load of 16 bytes a lane, long before it uses them; it looks 512 pairs up, multiplies them
//   by their scales, and starts four products of 16. While those go on in the background it decodes the next 64.
//   Floors, on each multiprocessor: memory brings 36 weights a cycle. Shared memory gives 64 by the table, of which products of 64 rows take half the time
//   again: 32. 64 rows need 1/32 cycle of the tensor cores for a weight, fewer rows less. A warp issues some 70 instructions for 1,024: 58.
//   From 17 rows on x comes as operands from a kernel before, as a unit's stage holds it, so no block's instructions and registers go into that.
//   Adapters: low·Bᵀ is added by mma.sync to the sums of the block that has a group's first unit. What it reads comes into shared memory behind that unit, and is
//   there by its last: read when it is needed, it would cost three waits in a row, with little else under way.
#include <algorithm>
#include <bit>

#include "core/error.h"
#include "cuda/ops/nf4_products.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"
#include "cuda/runtime/warpgroup.h"

namespace engine::cuda::nf4 {
namespace {

constexpr int kUnit = kQuad * kBlock;
constexpr int kMostRows = 64;
constexpr int kPieceBytes = 512;  // of an adapter's B: 16 of its rank, of a tile's rows
constexpr int kTableAt = 2048;   // the table's address in shared memory, known to the compiler; what the system keeps for itself lies before it

// A place among the units: number `k` of K, of a group of tiles.
struct Place {
  int group, k;
};

// kColumns · 8 rows of x, a group of 4 · kGroups tiles.
template <int kColumns, int kGroups>
struct Layout {
  static constexpr int kRows = 8 * kColumns;
  // Few rows of x become operands on the way into shared memory, by warps of every block. Many would take as many instructions as the weights, and the registers
  // of those warps; a kernel before does it once for all blocks, and a thread has them copied.
  static constexpr bool kPrepared = kColumns >= 4;
  static constexpr int kProducers = kPrepared ? 0 : 4;           // warps that bring x
  static constexpr int kWarps = 4 * kGroups, kThreads = (kWarps + kProducers) * kWarp;
  static constexpr int kMatrixBytes = kRows * kBlock * 2;        // of x of a block of 64: rows of 128 bytes, as warpgroup.h says
  static constexpr int kStageBytes = kQuad * kMatrixBytes;
  static constexpr int kStages = 4;                              // of x
  static constexpr int kCopiedAhead = kStages - 2;               // units whose x is being copied; the stage was left by other warps long ago
  static constexpr int kAhead = kGroups == 2 ? 2 : 1;            // units whose weights are in registers or under way
  static constexpr int kTileSums = kTile * kRows;
  static constexpr int kTogether = kColumns <= 2 ? 4 : kColumns == 4 ? 2 : 1;  // partial sums that are under way when they are joined
  static constexpr int kPartsAtOnce = kColumns == 8 && kGroups == 2 ? 2 : 1;     // of a gated tile's adapters, as registers allow
  static constexpr int kPieces = kColumns == 8 && kGroups == 4 ? 4 : 8;          // of B that a warp holds
  static constexpr std::int64_t shared(bool adapters) { return kTableAt + kTableBytes + kStages * kStageBytes + (adapters ? kWarps * kPieces * kPieceBytes : 0); }
};

// ---- adapters. What is known of them lies in the table's free half.

// An adapter that rows of x have.
struct Adapter {
  const bf16* b[3];
  std::int32_t rank[3];
  std::uint32_t rows[2];  // a bit for each
};
// What a row of x has.
struct RowAdapter {
  std::int32_t rank[3];  // 0 where it has none
};
ENGINE_DEVICE unsigned char* free_piece(unsigned char* table, int i) { return table + 256 * i + 128; }
ENGINE_DEVICE Adapter* adapter_at(unsigned char* table, int i) { return reinterpret_cast<Adapter*>(free_piece(table, i)); }
ENGINE_DEVICE RowAdapter* row_adapter_at(unsigned char* table, int row) { return reinterpret_cast<RowAdapter*>(free_piece(table, kMostRows + row)); }
ENGINE_DEVICE int& adapters_of(unsigned char* table) { return *reinterpret_cast<int*>(free_piece(table, 2 * kMostRows)); }
// Counting barriers, there too: a stage's x is there; nobody reads it any more; low is there.
ENGINE_DEVICE std::uint64_t* full(unsigned char* table, int stage) { return reinterpret_cast<std::uint64_t*>(free_piece(table, 2 * kMostRows + 1)) + stage; }
ENGINE_DEVICE std::uint64_t* empty(unsigned char* table, int stage) { return full(table, 4 + stage); }
ENGINE_DEVICE std::uint64_t* low_is_there(unsigned char* table) { return full(table, 8); }
// low of kRows rows, where it is no wider than this; zeros where a row has none.
template <int kRows>
struct HeldLow {
  static constexpr int kFirst = 2 * kMostRows + 2, kEach = (256 - kFirst) / kRows, kMost = 64 * kEach;  // pieces of 64 columns
  // Where 8 columns lie; the same columns of neighbouring rows lie in different banks.
  static ENGINE_DEVICE unsigned char* at(unsigned char* table, int row, int eight) {
    return free_piece(table, kFirst + row * kEach + eight / 8) + 16 * ((eight ^ row) & 7);
  }
  static ENGINE_DEVICE bool holds(const Products& p) { return p.adapters.parts * p.adapters.ranks <= kMost; }
};

ENGINE_DEVICE int count_bits(std::uint64_t bits) {
#ifdef ENGINE_CUDA_EMULATED
  return std::popcount(bits);
#else
  return __popcll(bits);
#endif
}

// By one warp; a barrier has to follow.
ENGINE_DEVICE void note_adapters(const Products& p, unsigned char* table) {
  const int lane = static_cast<int>(lane_id()), rows = static_cast<int>(p.x.rows);
  std::int32_t id[2];  // of rows lane and lane + 32
#pragma unroll
  for (int h = 0; h < 2; ++h) id[h] = lane + kWarp * h < rows ? p.adapters.adapter[lane + kWarp * h] : -1;
  LoraEntry entries[2][3] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int part = 0; part < 3; ++part)
      if (id[h] >= 0 && part < p.adapters.parts) entries[h][part] = p.adapters.entries[id[h] * p.adapters.parts + part];
  std::uint64_t same[2] = {};  // rows with the same
#pragma unroll 8
  for (int other = 0; other < kWarp; ++other) {
    const std::int32_t low = shuffle(id[0], static_cast<unsigned>(other)), high = shuffle(id[1], static_cast<unsigned>(other));
#pragma unroll
    for (int h = 0; h < 2; ++h) same[h] |= (std::uint64_t{id[h] == low} << other) | (std::uint64_t{id[h] == high} << (kWarp + other));
  }
  const auto before = [&](int h) { return (std::uint64_t{1} << (lane + kWarp * h)) - 1; };
  const bool leads[2] = {id[0] >= 0 && (same[0] & before(0)) == 0, id[1] >= 0 && (same[1] & before(1)) == 0};
  const std::uint64_t leaders = warp_sum(leads[0] ? 1u << lane : 0u) | std::uint64_t{warp_sum(leads[1] ? 1u << lane : 0u)} << kWarp;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Adapter* to = leads[h] ? adapter_at(table, count_bits(leaders & before(h))) : nullptr;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      row_adapter_at(table, lane + kWarp * h)->rank[part] = entries[h][part].rank;
      if (to == nullptr) continue;
      to->b[part] = entries[h][part].b;
      to->rank[part] = entries[h][part].rank;
    }
    if (to == nullptr) continue;
    to->rows[0] = static_cast<std::uint32_t>(same[h]);
    to->rows[1] = static_cast<std::uint32_t>(same[h] >> kWarp);
  }
  if (lane == 0) adapters_of(table) = count_bits(leaders);
}

// `value`, opaquely: nothing that follows from it is worked out earlier and then kept in registers while units are multiplied.
ENGINE_DEVICE int not_before(int value) {
#ifndef ENGINE_CUDA_EMULATED
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// Threads of the warps that multiply: begin to bring low into shared memory.
template <class L>
ENGINE_DEVICE void bring_low(const Products& p, unsigned char* table) {
  using Held = HeldLow<L::kRows>;
  if (!Held::holds(p)) return;
  const int eights = static_cast<int>(p.adapters.parts * p.adapters.ranks / 8), each = static_cast<int>(p.adapters.ranks / 8);
  for (int i = not_before(static_cast<int>(threadIdx.x)); i < L::kRows * eights; i += L::kWarps * kWarp) {
    const int row = i / eights, eight = i % eights;
    const bool has = 8 * (eight % each) < row_adapter_at(table, row)->rank[eight / each];
    copy_async16(Held::at(table, row, eight), has ? p.low.row(row) + 8 * eight : p.low.data, has ? 16 : 0);
  }
}

// What a warp adds of adapters to a tile's sums, of pieces: piece c · adapters + i is 16 of the rank from 16 · c on, of adapter number i.
template <class L>
struct LowRankTerm {
  const Products& p;
  unsigned char* table;
  unsigned char* pieces;  // the warp's
  int lane, adapters, all;

  ENGINE_DEVICE LowRankTerm(const Products& of, unsigned char* its_table)
      : p(of), table(its_table), lane(not_before(static_cast<int>(lane_id()))), adapters(adapters_of(its_table)), all(adapters * static_cast<int>((of.adapters.ranks + 15) / 16)) {
    pieces = table + kTableBytes + L::kStages * L::kStageBytes + not_before(static_cast<int>(threadIdx.x) / kWarp) * L::kPieces * kPieceBytes;
  }

  // Where 8 of a piece's row lie, first or last.
  ENGINE_DEVICE unsigned char* row_of_piece(unsigned char* piece, int row, int half) const { return piece + 32 * row + 16 * (half ^ (row >> 2 & 1)); }

  // Begins to bring pieces `first` …, a lane 16 bytes of each.
  template <bool kGated>
  ENGINE_DEVICE void bring(int tile, int first) const {
    const TileRow at = tile_row<kGated>(p, tile, lane / 2);
    int c = first / adapters, i = first % adapters;
    for (int piece = 0; piece < L::kPieces && first + piece < all; ++piece) {
      const Adapter& of = *adapter_at(table, i);
      const int part = at.part < 0 ? 0 : at.part, k = 16 * c + 8 * (lane % 2);
      const bool has = at.part >= 0 && k < of.rank[part];
      copy_async16(row_of_piece(pieces + kPieceBytes * piece, lane / 2, lane % 2), has ? static_cast<const void*>(of.b[part] + std::int64_t{at.row} * of.rank[part] + k) : p.codes, has ? 16 : 0);
      if (++i == adapters) {
        i = 0;
        ++c;
      }
    }
  }

  // A lane's words of low: the right operand of 16 of the rank, rows 8·n + g.
  ENGINE_DEVICE void read_low(int part, int c, std::uint32_t (&low)[L::kRows / 8][2]) const {
    const int g = lane / 4, t = lane % 4;
    if (HeldLow<L::kRows>::holds(p)) {
      const int eight = (part * static_cast<int>(p.adapters.ranks) + 16 * c) / 8;
      const bool both = 16 * c + 8 < p.adapters.ranks;
#pragma unroll
      for (int n = 0; n < L::kRows / 8; ++n) {
        low[n][0] = *reinterpret_cast<const std::uint32_t*>(HeldLow<L::kRows>::at(table, 8 * n + g, eight) + 4 * t);
        low[n][1] = both ? *reinterpret_cast<const std::uint32_t*>(HeldLow<L::kRows>::at(table, 8 * n + g, eight + 1) + 4 * t) : 0;
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < L::kRows / 8; ++n) {
      const int row = 8 * n + g, rank = row_adapter_at(table, row)->rank[part];
      const bf16* from = p.low.row(row) + part * p.adapters.ranks + 16 * c + 2 * t;
#pragma unroll
      for (int half = 0; half < 2; ++half) low[n][half] = 16 * c + 8 * half < rank ? *reinterpret_cast<const std::uint32_t*>(from + 8 * half) : 0;
    }
  }

  // Adds the term, over the sums' unit (a power of two). The first pieces are there, and low.
  template <bool kGated>
  ENGINE_DEVICE void add(int tile, float (&sum)[L::kRows / 8][4]) const {
    constexpr int kParts = kGated && L::kPartsAtOnce == 2 ? 2 : 1;  // at once
    const int g = lane / 4, t = lane % 4;
    const TileRow at[2] = {tile_row<kGated>(p, tile, g), tile_row<kGated>(p, tile, g + 8)};
    const int first_part = tile_row<kGated>(p, tile, 0).part, last = tile_row<kGated>(p, tile, kTile - 1).part;
    const int last_part = last < 0 ? static_cast<int>(p.adapters.parts) - 1 : last;
    const float over_unit[2] = {1.0f / (kRange * p.unit[at[0].part < 0 ? 0 : at[0].part]), 1.0f / (kRange * p.unit[at[1].part < 0 ? 0 : at[1].part])};
#pragma unroll 1
    for (int begin = 0; begin < all; begin += L::kPieces) {
      if (begin > 0) {
        bring<kGated>(tile, begin);
        copy_async_commit();
        copy_async_wait<0>();
        sync_warp();
      }
      const int end = begin + L::kPieces < all ? begin + L::kPieces : all;
#pragma unroll 1
      for (int c = begin / adapters; c * adapters < end; ++c) {
        const int from = c * adapters < begin ? begin - c * adapters : 0, to = end < (c + 1) * adapters ? end - c * adapters : adapters;  // the adapters whose piece c is there
#pragma unroll 1
        for (int part = first_part; part <= last_part; part += kParts) {
          std::uint32_t low[kParts][L::kRows / 8][2];
#pragma unroll
          for (int q = 0; q < kParts; ++q) read_low(part + q, c, low[q]);
#pragma unroll 1
          for (int i = from; i < to; ++i) {
            unsigned char* piece = pieces + kPieceBytes * (c * adapters + i - begin);
            std::uint32_t a[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) a[j] = kParts == 2 || at[j % 2].part == part ? *reinterpret_cast<const std::uint32_t*>(row_of_piece(piece, g + 8 * (j % 2), j / 2) + 4 * t) : 0;
#pragma unroll
            for (int word = 0; word < (L::kRows + 31) / 32; ++word) {
              const std::uint32_t members = adapter_at(table, i)->rows[word];
              if (members == 0) continue;
              // Without a branch for each column: those cost more than the products. What another's adapter would make of a row is dropped, were it infinite.
#pragma unroll
              for (int n = 4 * word; n < 4 * word + 4 && n < L::kRows / 8; ++n) {
                float added[4] = {};
                if (kParts == 2) {
                  mma(added, {a[0], 0, a[2], 0}, low[0][n][0], low[0][n][1]);
                  mma(added, {0, a[1], 0, a[3]}, low[kParts - 1][n][0], low[kParts - 1][n][1]);
                } else {
                  mma(added, a, low[0][n][0], low[0][n][1]);
                }
#pragma unroll
                for (int v = 0; v < 4; ++v) {
                  const float with = fmaf(added[v], over_unit[v / 2], sum[n][v]);
                  sum[n][v] = (members >> (n % 4 * 8 + 2 * t + v % 2) & 1u) != 0 ? with : sum[n][v];
                }
              }
            }
          }
        }
      }
      sync_warp();  // before others' pieces come there
    }
  }
};

// y from the sums of a tile, C fragments of 8 rows of x each.
template <bool kGated, int kColumns>
ENGINE_DEVICE void finish_tile(const Products& p, int tile, float (&sum)[kColumns][4]) {
  const int lane = static_cast<int>(lane_id()), g = lane / 4, t = lane % 4;
  const TileRow at[2] = {tile_row<kGated>(p, tile, g), tile_row<kGated>(p, tile, g + 8)};
  int output[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int part = at[h].part < 0 ? 0 : at[h].part;
    output[h] = p.first[part] + at[h].row;
    const float unit = kRange * p.unit[part], bias = p.bias != nullptr ? widen(p.bias[output[h]]) : 0.0f;
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[n][2 * h + i] = fmaf(sum[n][2 * h + i], unit, bias);
  }
  // Values first, then what is written: a branch for each would cost more than they do.
  const auto inside = [&](int n, int i) { return 8 * n + 2 * t + i % 2 < p.y.rows && at[kGated ? 0 : i / 2].part >= 0; };
  constexpr int kValues = kGated ? 2 : 4;
  if (!kGated && p.residual.data != nullptr) {
    bf16 residual[kColumns][4] = {};
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (inside(n, i)) residual[n][i] = p.residual.row(8 * n + 2 * t + i % 2)[output[i / 2]];
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] = widen(residual[n][i]) + widen(narrow(sum[n][i]));
  }
  if (kGated) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[n][i] = activate(widen(narrow(sum[n][i])), p.gelu) * widen(narrow(sum[n][i + 2]));
  }
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (inside(n, i)) p.y.row(8 * n + 2 * t + i % 2)[output[i / 2]] = narrow(sum[n][i]);
}

#ifdef ENGINE_WARPGROUP_PRODUCTS
// A unit's weights of one warp, as loaded.
struct Weights {
  uint4 codes[kQuad];
  uint4 scales;
};

ENGINE_DEVICE std::uint32_t decode(std::uint32_t word, int i, std::uint32_t lane4) {
  return load_shared4<kTableAt>(permute_bytes(word, lane4, 0x5504u + 16u * static_cast<unsigned>(i)));
}
// The A operands of half a block, whose scales are {of row g, of row g + 8}.
ENGINE_DEVICE void decode_half(std::uint32_t upper, std::uint32_t lower, std::uint32_t scales, std::uint32_t lane4, std::uint32_t (&a)[2][4]) {
  const std::uint32_t of_upper = permute_bytes(scales, scales, 0x1010), of_lower = permute_bytes(scales, scales, 0x3232);
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[s][2 * i] = multiply_pairs_f16(decode(upper, 2 * s + i, lane4), of_upper);
      a[s][2 * i + 1] = multiply_pairs_f16(decode(lower, 2 * s + i, lane4), of_lower);
    }
}

// Chunk c of 16 bytes of a row's block of 64 values, from x at its first value: pair t of it is pair 8·t + c, as the codes' places in A ask for.
struct Chunk {
  std::uint32_t words[4];
  ENGINE_DEVICE void load(bool inside, const bf16* block, int c) {
#pragma unroll
    for (int t = 0; t < 4; ++t) words[t] = inside ? *reinterpret_cast<const std::uint32_t*>(block + 2 * c + 16 * t) : 0;
  }
  ENGINE_DEVICE uint4 operand() const {
    float values[8];
    widen8({words[0], words[1], words[2], words[3]}, values);
    return to_operand(values);
  }
};
// Where it lies in its row's 128 bytes, in chunks.
ENGINE_DEVICE int place_of_chunk(int row, int c) { return c ^ (row & 7); }

// A producer's work: x of units first … last - 1 as fp16, through the stages. It brings rows of 256 values; producers take turns.
//   These are warps of their own because fence_shared_for_products waits for all loads of its thread, and the others always have weights under way.
template <class L>
ENGINE_DEVICE void bring_x(const Products& p, unsigned char* table, unsigned char* x, int producer, int first, int last) {
  const int blocks = static_cast<int>(p.x.cols / kBlock), depth = (blocks + kQuad - 1) / kQuad;
  const int lane = static_cast<int>(lane_id()), block = lane / 8, chunk = lane % 8;
  unsigned char* to = x + block * L::kMatrixBytes;
  for (int unit = first + producer; unit < last; unit += L::kProducers) {
    const int k = unit % depth, stage = (unit - first) % L::kStages, turn = (unit - first) / L::kStages;
    const bool inside = kQuad * k + block < blocks;
    Chunk chunks[L::kRows];
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) chunks[r].load(inside && r < static_cast<int>(p.x.rows), p.x.row(r) + k * kUnit + block * kBlock, chunk);
    wait_for_phase(empty(table, stage), static_cast<unsigned>(turn & 1) ^ 1u);
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) store16(to + stage * L::kStageBytes + r * 128 + 16 * place_of_chunk(r, chunk), chunks[r].operand());
    fence_shared_for_products();
    arrive(full(table, stage));
  }
}
// The same by one thread, of what prepare_x has made, for unit number `turn` of this block, which is k of K.
template <class L>
ENGINE_DEVICE void copy_x(const unsigned char* prepared, unsigned char* table, unsigned char* x, int turn, int k) {
  const int stage = turn % L::kStages;
  wait_for_phase(empty(table, stage), static_cast<unsigned>(turn / L::kStages & 1) ^ 1u);
  arrive_with_copy(full(table, stage), x + stage * L::kStageBytes, prepared + std::int64_t{k} * L::kStageBytes, L::kStageBytes);
}
#endif

// x as a unit's stage holds it, all units of K one after another; zeros for rows and blocks that are not there. A thread makes 16 bytes.
constexpr int kPreparers = 256;  // threads of a block
template <int kRows>
__global__ void __launch_bounds__(kPreparers) prepare_x(View<const bf16> x, unsigned char* to) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  allow_next();
  const int i = static_cast<int>(blockIdx.x) * kPreparers + static_cast<int>(threadIdx.x), chunk = i % 8, row = i / 8 % kRows, block = i / 8 / kRows;
  wait_for_previous();
  Chunk of;
  of.load(row < x.rows && block < x.cols / kBlock, x.data + row * x.stride + block * kBlock, chunk);
  store16(to + (i / 8) * 128 + 16 * place_of_chunk(row, chunk), of.operand());
#endif
}

// kAdapts: a kernel of its own, so that what adapters need takes no registers of the others'.
template <int kColumns, int kGroups, bool kGated, bool kAdapts>
__global__ void __launch_bounds__(Layout<kColumns, kGroups>::kThreads, 1) multiply(Products p, const unsigned char* prepared, int tiles, int share) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  using L = Layout<kColumns, kGroups>;
  allow_next();
  unsigned char* table = static_cast<unsigned char*>(block_shared()) + (kTableAt - static_cast<int>(shared_number(block_shared())));
  unsigned char* x = table + kTableBytes;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int blocks = static_cast<int>(p.x.cols / kBlock), depth = (blocks + kQuad - 1) / kQuad;  // units along K
  const int units = (tiles + L::kWarps - 1) / L::kWarps * depth;
  const int first = static_cast<int>(blockIdx.x) * share, last = first + share < units ? first + share : units;

  // Weights. Blocks beyond K are another tile's, times scales of zero.
  Place ahead{first / depth, first % depth};
  int left = last - first;  // units that are still to be brought
  const std::uint8_t* codes_ahead = nullptr;
  const std::uint32_t* scales_ahead = nullptr;
  const auto go_to_tile = [&] {
    const int wanted = L::kWarps * ahead.group + warp;
    const std::int64_t tile = wanted < tiles ? wanted : tiles - 1;  // beyond the last: any
    codes_ahead = p.codes + (tile * blocks + ahead.k * kQuad) * kBlockBytes + 16 * lane;
    scales_ahead = p.scales + ((tile * depth + ahead.k) * 8 + lane / 4) * kQuad;
  };
  const auto next_ahead = [&] {
    --left;
    codes_ahead += kQuad * kBlockBytes;
    scales_ahead += 8 * kQuad;
    if (++ahead.k < depth) return;
    ahead = {ahead.group + 1, 0};
    go_to_tile();
  };
  go_to_tile();
  Weights weights[L::kAhead] = {};
  if (warp < L::kWarps) {
#pragma unroll
    for (Weights& to : weights) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) load16_once_if(left > 0, codes_ahead + j * kBlockBytes, to.codes[j]);
      load16_once_if(left > 0, scales_ahead, to.scales);
      next_ahead();
    }
  }
  fill_table(table, p.book);
  if (thread < L::kStages) {
    prepare_counter(full(table, thread), L::kPrepared ? 1 : kWarp);
    prepare_counter(empty(table, thread), L::kWarps);
  }
  if (thread == 0) prepare_counter(low_is_there(table), L::kWarps);
  if (kAdapts && warp == L::kWarps - 1) note_adapters(p, table);
  __syncthreads();
  const bool adapts = kAdapts && adapters_of(table) > 0;
  wait_for_previous();
  if constexpr (L::kPrepared) {
    if (thread == 0)
      for (int unit = first; unit < last && unit < first + L::kCopiedAhead; ++unit) copy_x<L>(prepared, table, x, unit - first, unit % depth);
  } else if (warp >= L::kWarps) {
    return bring_x<L>(p, table, x, warp - L::kWarps, first, last);
  }

  const std::uint32_t lane4 = 4u * static_cast<unsigned>(lane);
  const std::uint64_t x_matrix = matrix_descriptor(x, 16, 1024);
  const auto after = [&](int k) { return k + 1 == depth ? 0 : k + 1; };
  float sum[kColumns][4] = {};
  std::uint32_t a[2][2][4] = {};
  const auto decode_into = [&](std::uint32_t(&to)[2][4], const Weights& of, int half) {
    const uint4& codes = of.codes[half / 2];
    const std::uint32_t scales[kQuad] = {of.scales.x, of.scales.y, of.scales.z, of.scales.w};
    decode_half(half % 2 == 0 ? codes.x : codes.y, half % 2 == 0 ? codes.z : codes.w, scales[half / 2], lane4, to);
  };
  Place at{first / depth, first % depth};
  int begun = first, unit = first, stage = 0;  // begun: of the group at hand
  unsigned parity = 0;                         // of the stage's phase
  bool low_asked = false, low_told = false;    // by this warp, and when its part of it was there
  const auto multiply_unit = [&](Weights& now) {
    if (L::kPrepared && thread == 0 && unit + L::kCopiedAhead < last) copy_x<L>(prepared, table, x, unit - first + L::kCopiedAhead, (unit + L::kCopiedAhead) % depth);
    decode_into(a[0], now, 0);
    sync_warp();
    wait_for_phase(full(table, stage), parity);
    const std::uint64_t b = further(x_matrix, shuffle(stage, 0) * L::kStageBytes);  // shuffled: so the compiler knows that all lanes have the same
#pragma unroll
    for (int j = 0; j < 2 * kQuad; ++j) {  // a[j % 2] is half a block, decoded
      fence_products();
#pragma unroll
      for (int s = 0; s < 2; ++s) multiply_group_f16(sum, a[j % 2][s], further(b, j / 2 * L::kMatrixBytes + 64 * (j % 2) + 32 * s));
      commit_products();
      if (j + 1 < 2 * kQuad) {
        wait_products<1>(a[(j + 1) % 2]);
        decode_into(a[(j + 1) % 2], now, j + 1);
      }
      if (j % 2 == 0) load16_once_if(left > 0, codes_ahead + j / 2 * kBlockBytes, now.codes[j / 2]);
      if (j == 2 * kQuad - 2) load16_once_if(left > 0, scales_ahead, now.scales);
    }
    wait_products<0>(sum, a[0], a[1]);
    if (lane == 0) arrive(empty(table, stage));
    next_ahead();
    if (++stage == L::kStages) {
      stage = 0;
      parity ^= 1u;
    }
  };
  const auto end_unit = [&] {
    const int group = at.group;
    const int tile = L::kWarps * group + warp;
    if (adapts && at.k == 0) {
      if (!low_asked) bring_low<L>(p, table);
      low_asked = true;
      if (tile < tiles) LowRankTerm<L>(p, table).template bring<kGated>(not_before(tile), 0);
      copy_async_commit();
    }
    at.k = after(at.k);
    if (at.k == 0) ++at.group;
    ++unit;
    if (unit < last && at.k != 0) return;

    // The end of this block's part of the group.
    if (adapts && group * depth >= first) {
      copy_async_wait<0>();
      sync_warp();
      if (!low_told && lane == 0) arrive(low_is_there(table));
      low_told = true;
      wait_for_phase(low_is_there(table), 0);
      if (tile < tiles) LowRankTerm<L>(p, table).template add<kGated>(not_before(tile), sum);
    }
    if (tile < tiles) {
      const int group_first = group * depth, first_owner = group_first / share, last_owner = (group_first + depth - 1) / share;
      bool whole = first_owner == last_owner;
      if (!whole) {
        // A block's first part lies in its first slot, its last in the second.
        const auto slot = [&](int block, bool second) { return p.partials + std::int64_t{(2 * block + (second ? 1 : 0)) * L::kWarps + warp} * L::kTileSums + 4 * lane; };
        float* mine = slot(static_cast<int>(blockIdx.x), begun != first);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) store_floats4(mine + n * 4 * kWarp, sum[n]);
        sync_warp();
        unsigned* counter = p.arrivals + first_owner * L::kWarps + warp;  // no block is the first of two groups that are split
        const unsigned arrived = shuffle(lane == 0 ? count_arrival(counter) : 0u, 0);
        whole = static_cast<int>(arrived) == last_owner - first_owner;  // the others are there
        if (whole) {
          acquire();
          if (lane == 0) *counter = 0;
#pragma unroll
          for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[n][i] = 0;
          for (int from = first_owner; from <= last_owner; from += L::kTogether) {
            float more[L::kTogether][kColumns][4] = {};
#pragma unroll
            for (int i = 0; i < L::kTogether; ++i) {
              const int block = from + i;
              if (block > last_owner) continue;
              const float* there = slot(block, block == first_owner && block * share < group_first);
#pragma unroll
              for (int n = 0; n < kColumns; ++n) load_floats4(there + n * 4 * kWarp, more[i][n]);
            }
#pragma unroll
            for (int i = 0; i < L::kTogether; ++i)
#pragma unroll
              for (int n = 0; n < kColumns; ++n)
#pragma unroll
                for (int v = 0; v < 4; ++v) sum[n][v] += more[i][n][v];  // zeros behind the last owner
          }
        }
      }
      if (whole) finish_tile<kGated>(p, tile, sum);
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] = 0;
    begun = unit;
  };
#pragma unroll 1
  while (unit < last) {
#pragma unroll
    for (int i = 0; i < L::kAhead; ++i) {
      if (unit >= last) break;
      multiply_unit(weights[i]);
      end_unit();
    }
  }
#endif
}

// How many rows the kernel that takes `rows` has.
std::int64_t rows_held(std::int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : kMostRows; }
// Two parts of 16 tiles from each block.
std::int64_t partials_bytes(std::int64_t rows) { return std::int64_t{2} * multiprocessors() * 16 * kTile * rows_held(rows) * 4; }

template <int kColumns, int kGroups>
void launch_layout(const Products& p, bool gated, std::int64_t tiles, cudaStream_t stream) {
  using L = Layout<kColumns, kGroups>;
  const std::int64_t units = ceil_div(tiles, L::kWarps) * ceil_div(p.x.cols, kUnit);
  require(units < std::int64_t{1} << 30, "a product of ", p.first[3], " outputs of ", p.x.cols, " values");
  const std::int64_t share = ceil_div(units, multiprocessors());
  // Behind the partial sums.
  unsigned char* prepared = L::kPrepared ? reinterpret_cast<unsigned char*>(p.partials) + partials_bytes(p.x.rows) : nullptr;
  if constexpr (L::kPrepared) {
    const std::int64_t chunks = ceil_div(p.x.cols, kUnit) * L::kStageBytes / 16;
    static_assert(L::kStageBytes / 16 % kPreparers == 0);
    launch_chained(stream, blocks(chunks / kPreparers), kPreparers, 0, prepare_x<L::kRows>, p.x, prepared);
  }
  const bool adapts = p.adapters.entries != nullptr;
  const auto kernel = adapts ? gated ? multiply<kColumns, kGroups, true, true> : multiply<kColumns, kGroups, false, true>
                             : gated ? multiply<kColumns, kGroups, true, false> : multiply<kColumns, kGroups, false, false>;
  launch_chained(stream, blocks(ceil_div(units, share)), L::kThreads, L::shared(adapts), kernel, p, prepared, static_cast<int>(tiles), static_cast<int>(share));
}

}  // namespace

std::int64_t rows_workspace(std::int64_t rows, std::int64_t depth) { return partials_bytes(rows) + ceil_div(depth, kUnit) * kUnit * rows_held(rows) * 2; }

void multiply_rows(const Products& p, bool gated, bool same_order, cudaStream_t stream) {
  const std::int64_t rows = p.x.rows, tiles = ceil_div(p.first[3], kTile);
  require(has_warpgroup_products(), "rows of ", p.x.cols, " values do not fit into shared memory");
  require(p.norm.weight == nullptr, "x of ", rows, " rows cannot be normalized on the way in");
  require(p.partials != nullptr, "a product of ", rows, " rows needs a workspace");
  require(rows <= kMostRows, "a product of ", rows, " rows");
  require(16 * multiprocessors() <= kMostGroups, "a device of ", multiprocessors(), " multiprocessors");
  // With 64 rows joining is dear: half as many tiles at a time make parts of half the size, and fewer of a tile, in another order of sums.
  const auto launch_many = same_order ? launch_layout<8, 4> : launch_layout<8, 2>;
  (rows <= 8 ? launch_layout<1, 4> : rows <= 16 ? launch_layout<2, 4> : rows <= 32 ? launch_layout<4, 4> : launch_many)(p, gated, tiles, stream);
}

}  // namespace engine::cuda::nf4
