// nf4_gemv.cu: which kernel takes a product: 1 to 4 rows nf4_gemv_few.cu, more nf4_gemv_rows.cu.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/lora_fold.cuh"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/nf4_products.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace nf4 {
namespace {

// All but the weight.
Products make_products(View<const bf16> x, View<bf16> y, const GemvExtras& extras) {
  require(x.rows >= 1 && x.rows <= kGemvRows, x.rows, " rows; a product by vectors takes 1 to ", kGemvRows);
  return {.x = x, .codes = nullptr, .scales = nullptr, .unit = {1, 1, 1}, .first = {}, .norm = extras.norm, .bias = extras.bias, .low = extras.low,
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
  require(!p.shrinks || (p.arrivals != nullptr && nf4_gemv_shrinks(p.x.rows, p.x.cols, p.adapters)),
          "adapters without their shrunk rows, and with a workspace, are for at most ", kGemvNormRows, " rows; there are ", p.x.rows);
  require(p.adapters.entries == nullptr || p.shrinks || (p.low.rows == p.x.rows && p.low.cols >= p.adapters.parts * p.adapters.ranks && p.adapters.ranks % 8 == 0),
          "the adapters' rows are ", p.low.rows, "x", p.low.cols, " for ", p.adapters.parts, " parts of rank ", p.adapters.ranks);
}

Products with_weight(Products p, const PackedNf4& weight, bool gated) {
  require(weight.cols == p.x.cols, "rows of ", p.x.cols, " values with a weight of ", weight.cols);
  require(weight.gated == gated, "a weight is packed for a gated product or for a plain one; this is the other");
  p.codes = weight.codes;
  p.scales = weight.scales;
  std::ranges::copy(weight.unit, p.unit);
  std::ranges::copy(weight.first, p.first);
  check(p, gated);
  return p;
}

void multiply(const Products& p, bool gated, bool same_order, cudaStream_t stream) {
  const bool together = (p.x.rows > 4 || same_order) && has_warpgroup_products();  // without those: a few rows after another
  require(!p.shrinks || !same_order, "with one order for any rows low is given");
  if (!together && multiply_few(p, gated, same_order ? 1 : 4, stream)) return;
  require(!p.shrinks, "rows of ", p.x.cols, " values do not fit into shared memory; low has to be given");
  multiply_rows(p, gated, same_order, stream);
}

}  // namespace
}  // namespace nf4

namespace {
constexpr std::int64_t kMostShrunk = 768, kMostPieces = 8;  // columns of low that a product makes, shares along K
}

std::int64_t nf4_gemv_workspace(std::int64_t rows, std::int64_t depth) {
  const std::int64_t shrunk = rows <= kGemvNormRows ? 4 * rows * kMostShrunk * kMostPieces : 0;
  return 4 * nf4::kMostGroups + std::max(shrunk, nf4::rows_workspace(rows, depth));
}

bool nf4_gemv_shrinks(std::int64_t rows, std::int64_t depth, const RowAdapters& adapters) {
  const std::int64_t columns = adapters.parts * adapters.ranks;
  return rows <= kGemvNormRows && columns <= std::min(kMostShrunk, depth) && depth <= kMostPieces * nf4::kShareValues;
}

void nf4_gemv(View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::multiply(nf4::with_weight(nf4::make_products(x, y, extras), weight, false), false, extras.same_order, stream);
}

void nf4_gemv_gated(Activation act, View<const bf16> x, const PackedNf4& weight, View<bf16> y, const GemvExtras& extras, cudaStream_t stream) {
  nf4::Products p = nf4::with_weight(nf4::make_products(x, y, extras), weight, true);
  p.gelu = act == Activation::gelu_tanh;
  nf4::multiply(p, true, extras.same_order, stream);
}

}  // namespace engine::cuda
