#include <algorithm>

#include "core/error.h"
#include "ops/decode.h"
#include "ops/gemm.h"
#include "ops/gemm_blocked.h"
#include "ops/gemm_scalar.h"
#include "ops/linear.h"
#include "ops/linear_vector.h"
#include "ops/nf4.h"

namespace engine {
namespace {

// The low-rank term as the blocked product's second one; its right operand is read along rows (B) or columns (A).
ExtraProduct extra_product(const LowRank* low_rank, bool transposed) {
  if (low_rank == nullptr) return {};
  const ConstRows &left = low_rank->left, &right = low_rank->right;
  const Operand b = transposed ? Operand{right.data, 1, right.stride} : Operand{right.data, right.stride, 1};
  return {left.cols, low_rank->scale, {left.data, left.stride, 1}, b};
}

// With one order for both ways, the faster is taken: packing weights pays from about here on.
constexpr std::int64_t kSharedVectorRows = 16;

// A kernel without lanes (of bf16 instructions) has one order for any number of rows by itself, but not linear_vector's.
bool shares_lane_order(const GemmKernel& kernel) { return kernel.lanes > 0; }

#ifdef ENGINE_X86
// With bf16 tiles and few rows.
bool suits_tiles(const Exec& ex, ConstRows x, const Matrix& w) {
  const bool stored = w.dtype == Dtype::bf16 || (w.dtype == Dtype::nf4 && w.cols % kNf4Block == 0);
  return ex.isa >= Isa::amx && ex.compute == Compute::bf16 && stored && x.rows <= few_rows_amx.most && x.cols > 0;
}

void linear_by_tiles(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate) {
  constexpr std::int64_t kTile = 16;
  void* packed = ex.pool.shared_workspace(static_cast<std::size_t>(few_rows_amx.packed_bytes(x.cols)));
  few_rows_amx.pack(x, w.dtype == Dtype::nf4, packed);
  ex.pool.for_ranges((w.rows + kTile - 1) / kTile, 1, [&](std::int64_t begin, std::int64_t end) {
    few_rows_amx.multiply(w, begin * kTile, std::min(end * kTile, w.rows), packed, bias, y, accumulate);
  });
}
#else
bool suits_tiles(const Exec&, ConstRows, const Matrix&) { return false; }
void linear_by_tiles(const Exec&, ConstRows, const Matrix&, const float*, Rows, bool) {}
#endif

void require_low_rank(const LowRank* low_rank, std::int64_t tokens, std::int64_t rows, std::int64_t cols) {
  if (low_rank == nullptr) return;
  const ConstRows &left = low_rank->left, &right = low_rank->right;
  require(left.rows == tokens && right.rows == rows && right.cols == cols, "low-rank term: left ", left.rows, "x", left.cols, " and right ", right.rows,
          "x", right.cols, " do not fit ", tokens, " tokens and ", rows, "x", cols);
}

}  // namespace

void linear(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate, const LowRank* low_rank) {
  require_weight(w);
  require(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows, "linear: x ", x.rows, "x", x.cols, ", w ", w.rows, "x", w.cols, ", y ", y.rows,
          "x", y.cols, " do not fit");
  require_low_rank(low_rank, x.rows, w.rows, low_rank != nullptr ? low_rank->left.cols : 0);
  if (y.rows == 0 || y.cols == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  const bool alike = ex.order == SumOrder::same_for_any_rows, by_tiles = alike && suits_tiles(ex, x, w);
  if (kernel != nullptr && !by_tiles && (x.rows > (alike ? kSharedVectorRows : kVectorRows) || (alike && !shares_lane_order(*kernel))))
    return gemm_blocked(ex, *kernel, y.rows, y.cols, x.cols, 1.0f, {x.data, x.stride, 1}, {{}, &w, false}, bias, y, accumulate,
                        extra_product(low_rank, false), alike ? DepthOrder::by_lanes : DepthOrder::straight);
  if (by_tiles)
    linear_by_tiles(ex, x, w, bias, y, accumulate);
  else if (kernel != nullptr)
    linear_vector(ex, x, w, bias, y, accumulate);
  else
    linear_scalar(ex, x, w, bias, y, accumulate);
  if (low_rank != nullptr) gemm_nt(ex, low_rank->left, low_rank->right, y, low_rank->scale, true);
}

void linear_backward_input(const Exec& ex, ConstRows dy, const Matrix& w, Rows dx, bool accumulate, const LowRank* low_rank) {
  require_weight(w);
  require(dy.cols == w.rows && dx.cols == w.cols && dy.rows == dx.rows, "linear backward: dy ", dy.rows, "x", dy.cols, ", w ", w.rows, "x", w.cols,
          ", dx ", dx.rows, "x", dx.cols, " do not fit");
  require_low_rank(low_rank, dy.rows, low_rank != nullptr ? low_rank->left.cols : 0, w.cols);
  if (dx.rows == 0 || dx.cols == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel != nullptr)
    return gemm_blocked(ex, *kernel, dx.rows, dx.cols, dy.cols, 1.0f, {dy.data, dy.stride, 1}, {{}, &w, true}, nullptr, dx, accumulate,
                        extra_product(low_rank, true));
  linear_backward_input_scalar(ex, dy, w, dx, accumulate);
  if (low_rank != nullptr) gemm_nn(ex, low_rank->left, low_rank->right, dx, low_rank->scale, true);
}

void dequantize_rows(const Matrix& w, std::int64_t first_row, std::int64_t row_count, float* out) {
  require_weight(w);
  require(first_row >= 0 && row_count >= 0 && first_row + row_count <= w.rows, "rows ", first_row, " to ", first_row + row_count, " of a weight of ", w.rows);
  decode_weight(detected_isa(), w, first_row * w.cols, row_count * w.cols, out);  // the same bits with every instruction set
}

}  // namespace engine
