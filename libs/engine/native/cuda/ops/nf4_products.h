// nf4_products.h: what the two kernels of nf4_gemv.h share: where a tile's weights lie, how codes become operands, and what is done with a sum.
//   A tile is 16 weight rows: the A operand of mma.m16n8k16, with rows of x as columns of B. In a block of 64 values (one scale) lane (g, t) of a warp holds
//   the 16 codes 16t … of rows g and g + 8: which k an operand's place means is free, as long as A and B agree.
//   A code byte becomes its two fp16 values by a table of 256 pairs in shared memory. Entry e, for lane l, lies at 256·e + 4·l: every lane reads from a bank
//   of its own, and one byte permutation makes the address. The other half of each 256 bytes is free for other use.
#pragma once

#include "cuda/ops/activation.cuh"
#include "cuda/ops/nf4_decode.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/nf4_tile.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda::nf4 {

inline constexpr int kTableBytes = 65536;
inline constexpr float kRange = 0x1p4f;    // x is held as fp16 of x / kRange

struct Products {
  View<const bf16> x;
  const std::uint8_t* codes;  // of the weight (nf4_pack.h)
  const std::uint32_t* scales;
  float unit[3];          // of each part's scales
  std::int32_t first[4];  // the output where each part begins, and their end
  RmsNorm norm;
  const bf16* bias;
  View<const bf16> low;
  RowAdapters adapters;
  View<const bf16> residual;
  View<bf16> y;
  NfBook book;
  bool gelu;  // of a gated product
  bool shrinks;         // low is not given but made of x by the kernel itself (lora_fold.cuh)
  unsigned* arrivals;   // of split sums
  float* partials;
};

template <bool kGated>
ENGINE_DEVICE TileRow tile_row(const Products& p, int tile, int r) {
  return tile_row(p.first, kGated, tile, r);
}

// All threads of the block fill the table.
ENGINE_DEVICE void fill_table(unsigned char* table, const NfBook& book) {
  for (unsigned i = threadIdx.x; i < 256 * 8; i += blockDim.x) {
    const unsigned entry = i / 8;
    const std::uint32_t pair = pack_f16(book.value[entry >> 4], book.value[entry & 15]);
    store16(table + 256 * entry + 16 * (i % 8), {pair, pair, pair, pair});
  }
}

// The pair of byte `i` of a word of codes; `lane4` is four times the lane.
ENGINE_DEVICE std::uint32_t decode(const unsigned char* table, std::uint32_t word, int i, std::uint32_t lane4) {
  return *reinterpret_cast<const std::uint32_t*>(table + permute_bytes(word, lane4, 0x5504u + 16u * static_cast<unsigned>(i)));
}

// Eight values of x as fp16 of x / kRange.
ENGINE_DEVICE uint4 to_operand(const float (&v)[8]) {
  constexpr float s = 1.0f / kRange;
  return {pack_f16(v[0] * s, v[1] * s), pack_f16(v[2] * s, v[3] * s), pack_f16(v[4] * s, v[5] * s), pack_f16(v[6] * s, v[7] * s)};
}

// Σ_j low[row, part's j] · B[n, j] of the row's adapter. `made`: low [rows, parts · ranks], where it is not p.low.
ENGINE_DEVICE float low_rank_term(const Products& p, std::int64_t row, int part, std::int64_t n, const bf16* made) {
  if (p.adapters.entries == nullptr) return 0.0f;
  const std::int32_t adapter = p.adapters.adapter[row];
  if (adapter < 0) return 0.0f;
  const LoraEntry entry = p.adapters.entries[adapter * p.adapters.parts + part];
  const bf16* low = (made != nullptr ? made + row * p.adapters.parts * p.adapters.ranks : p.low.row(row)) + part * p.adapters.ranks;
  const bf16* b = entry.b + n * entry.rank;
  float sum = 0;
  for (int j = 0; j < entry.rank; j += 8) {
    float u[8], v[8];
    widen8(load16(low + j), u);
    widen8(load16(b + j), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(u[i], v[i], sum);
  }
  return sum;
}

// The product itself: of x, from the sum of operands' products.
ENGINE_DEVICE float product(const Products& p, float sum, std::int64_t row, int part, int n, const bf16* low) {
  const int output = p.first[part] + n;
  float value = sum * (kRange * p.unit[part]);
  if (p.bias != nullptr) value += widen(p.bias[output]);
  return value + low_rank_term(p, row, part, n, low);
}

// Writes y[row, …] of row `r` of a tile from its sum; of a gated tile r < 8 and `up` is the sum of row r + 8.
// `residual`: the one to add, where it has been read already.
template <bool kGated>
ENGINE_DEVICE void finish(const Products& p, int tile, int r, std::int64_t row, float sum, float up, float residual = 0, bool has_residual = false,
                          const bf16* low = nullptr) {
  const TileRow at = tile_row<kGated>(p, tile, r);
  if (at.part < 0 || row >= p.y.rows) return;
  float value = product(p, sum, row, at.part, at.row, low);
  if (kGated) {
    const float gate = widen(narrow(value));
    value = activate(gate, p.gelu) * widen(narrow(product(p, up, row, 1, at.row, low)));
    p.y.row(row)[at.row] = narrow(value);
    return;
  }
  const int output = p.first[at.part] + at.row;
  if (p.residual.data != nullptr) value = (has_residual ? residual : widen(p.residual.row(row)[output])) + widen(narrow(value));
  p.y.row(row)[output] = narrow(value);
}

// At most `most` ≤ 4 rows at a time (nf4_gemv_few.cu); false where x does not fit into shared memory.
bool multiply_few(const Products& p, bool gated, std::int64_t most, cudaStream_t stream);

// 1 to 64 rows (nf4_gemv_rows.cu). Its workspace: counters of kMostGroups groups of outputs, which are zero before and after, then rows_workspace bytes: partial sums, x as operands.
inline constexpr std::int64_t kMostGroups = 4096;
std::int64_t rows_workspace(std::int64_t rows, std::int64_t depth);
void multiply_rows(const Products& p, bool gated, bool same_order, cudaStream_t stream);

}  // namespace engine::cuda::nf4
