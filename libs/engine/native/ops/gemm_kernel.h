// gemm_kernel.h: what an instruction set supplies for a blocked matrix product: panels and a tile.
//   c[rows, cols] of one tile is Σ over depth of a(row, depth) · b(col, depth). Both operands are packed first, a_width (or cols) values
//   of a depth side by side, so that the tile reads memory in a straight line. What lies
//   beyond the rows and columns of a short panel is finite or not, but never looked at again.
#pragma once

#include <cstdint>

#include "core/exec.h"
#include "ops/lane_order.h"
#include "ops/matrix.h"

namespace engine {

// A column of tiles: `rows` rows of the result, a tile at a time, over one panel of b. Panels of a lie a_stride bytes apart.
struct TileColumn {
  std::int64_t depth;
  const void* a;
  std::int64_t a_stride;
  const void* b;
  float* c;
  std::int64_t stride;  // of c
  std::int64_t rows;
  int cols;
  float alpha;
  const float* bias;  // or null
  bool accumulate;
  bool prefetch;  // c is not in the caches
  const void* ahead = nullptr;  // to be brought into the second-level cache meanwhile: panels of a that come next
  std::int64_t ahead_bytes = 0;
};

struct GemmKernel {
  int rows, cols;            // of a full tile
  int a_width;               // values of one depth in a panel of a: rows, or rounded up to whole vectors
  int depth_step;            // a panel's depth is padded with zeros to a multiple of this
  int element_bytes;         // of a packed value: 4 (fp32) or 2 (bf16)
  std::int64_t depth_block;  // depth of one pass over the tiles: as much as keeps a panel of b in the first-level cache

  // panel ← source(i, d) at source[i * stride + d * depth_stride], i < count <= rows (or cols), d < depth. One of the strides is 1.
  // round: to bf16, for a kernel whose panels hold fp32 (bf16 panels are always rounded; they take subnormals for 0).
  using Pack = void (*)(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool round, void* panel);
  Pack pack_a, pack_b;

  // pack_a for a product with a stored nf4 weight, not transposed: in the order of depths in which pack_stored packs that. Null: the order of any other.
  Pack pack_a_for_nf4;

  // The lanes of lane_order.h, 0 for a kernel without it, and packing in that order: a source whose depth_stride is 1, depth at most one
  // sweep. Chain i goes to panel + chain_at[i] (in values), its depths one after another; rows beyond `count` may hold anything finite.
  int lanes;
  using PackLanes = void (*)(const float* source, std::int64_t stride, int count, std::int64_t depth, bool round, float* panel, const std::int64_t* chain_at);
  PackLanes pack_a_lanes, pack_b_lanes;

  // Packs columns of a stored weight, `count` of them in panels panel_bytes apart, straight from its codes: null, or for bf16 and for nf4 whose rows
  // are whole blocks of 64.
  //   panel(i, d) = w[first + i, at + d], or w[at + d, first + i] when transposed; i < count, d < depth, but d as pack_a_for_nf4 has it. What runs along w's rows (at,
  //   or first when transposed) is a multiple of 32.
  void (*pack_stored)(const Matrix& w, bool transposed, std::int64_t first, std::int64_t count, std::int64_t at, std::int64_t depth, void* panels,
                      std::int64_t panel_bytes);

  // c ← alpha · product (+ c when accumulate) (+ bias[col] when not null), for the column's first rows and cols.
  void (*tiles)(const TileColumn& column);

  std::int64_t padded(std::int64_t depth) const noexcept { return (depth + depth_step - 1) / depth_step * depth_step; }
};

// linear for at most `most` rows in the bits of a kernel's blocked product, reading weights (bf16, or nf4 whose rows are whole blocks) along
// their rows once.
struct FewRows {
  std::int64_t most;
  std::int64_t (*packed_bytes)(std::int64_t depth);
  void (*pack)(ConstRows x, bool for_nf4, void* packed);  // for_nf4: for products with nf4 weights
  // y[t, n] ← Σ x[t] · w[n] (+ y when accumulate) (+ bias[n]), n in [first, last).
  void (*multiply)(const Matrix& w, std::int64_t first, std::int64_t last, const void* packed, const float* bias, Rows y, bool accumulate);
};

extern const GemmKernel gemm_kernel_avx2, gemm_kernel_avx512, gemm_kernel_avx512bf16, gemm_kernel_amx;
// gemm_kernel_avx512bf16, gemm_kernel_amx and few_rows_amx for any machine with AVX-512 VBMI2, hundreds of times slower: what the instructions do, written out (bf16_instructions.h). For tests.
extern const GemmKernel gemm_kernel_avx512bf16_software, gemm_kernel_amx_software;
extern const FewRows few_rows_amx, few_rows_amx_software;

// The kernel of an instruction set, or null for scalar. fp32 products have the same kernel with and without bf16 instructions.
const GemmKernel* gemm_kernel(Isa isa, Compute compute) noexcept;

}  // namespace engine
