// nf4_gemv.h: products of few rows with NF4 weights, which are read once.   y[b] = x[b]·Wᵀ (+ bias) (+ low[b]·Bᵀ) (+ residual[b])
//   For generation: 1 ≤ rows ≤ 64. W is packed (nf4_pack.h), up to three matrices of the same K, one below another.
//   Weights are code · scale: the code's value as fp16, the scale of its block of 64 as fp16, each within 2^-11. For 1 to 4 rows the scale multiplies the fp32
//   sum of the block's products; from 5 rows on (and with same_order) the code's value, in fp16: a weight's relative error is below 2^-9.4 then.
//   They are not rounded to bf16, as nf4_dequantize does. x is taken as fp16 of x / 16: exact for 2^-10 ≤ |x| < 2^20, within 2^-21 below, infinite above.
//   Sums are fp32. From 5 to 32 rows, from 33 to 64, and from 1 to 64 with same_order, a row's bits do not depend on how many there are.
//   Asynchronous, and safe in a captured graph: reads nothing from the host.
#pragma once

#include "cuda/ops/lora_rows.h"
#include "cuda/ops/nf4_pack.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/glu.h"
#include "ops/matrix.h"

namespace engine::cuda {

inline constexpr std::int64_t kGemvRows = 64;
inline constexpr std::int64_t kGemvNormRows = 4;  // the most for which x may be normalized on the way in; with more, rmsnorm_forward goes first

struct GemvExtras {
  RmsNorm norm{};                 // weight null: x is taken as it is; else x's rows are normalized and rounded to bf16 first
  const bf16* bias = nullptr;     // [Σ N_p]
  RowAdapters adapters{};         // with `low` as lora_rows_shrink made it of the same (normalized) x;
  View<const bf16> low{};         // without data where nf4_gemv_shrinks: the product then makes it itself
  View<const bf16> residual{};    // like y, which it may be: y = bf16(residual + bf16(product))
  void* workspace = nullptr;      // nf4_gemv_workspace(rows, K) bytes, for more than 4 rows, for same_order and for adapters without `low`
  // A row has the same bits however many there are, from 1 to 64. x is not normalized then, and low is given.
  bool same_order = false;
};
// Of at most `rows` rows of at most `depth` values. Zeroed once before its first use; calls of one stream share it.
std::int64_t nf4_gemv_workspace(std::int64_t rows, std::int64_t depth);
// Of rows of `depth` values. A few values of x are summed in another order then, and x is taken as it is for the weights.
bool nf4_gemv_shrinks(std::int64_t rows, std::int64_t depth, const RowAdapters& adapters);

// x [rows, K], y [rows, Σ N_p].
void nf4_gemv(View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream);

// y [rows, F] = act(x·gateᵀ) · (x·upᵀ), of {gate, up} packed for it, each [F, K], F a multiple of 8. gate and up are rounded to bf16 before, as if stored.
// There is no residual; a bias is [gate | up].
void nf4_gemv_gated(Activation act, View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream);

}  // namespace engine::cuda
