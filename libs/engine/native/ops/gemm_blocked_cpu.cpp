#include "ops/gemm_blocked.h"

#include <algorithm>

#include "ops/decode.h"

namespace engine {
namespace {

constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kRowChunk = 1024;          // rows of a packed at a time: bounds the scratch memory
constexpr std::int64_t kMaxPanelsPerPart = 8;     // columns of c that stay in the second-level cache while the depth goes by
constexpr std::int64_t kSmallWork = 1 << 17;      // multiply-adds that one thread does sooner than two agree to share them
constexpr std::int64_t kSmallPack = 1 << 14;      // and values to pack

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// fp32 bytes at an address that a float may not have must go through a copy.
bool readable_in_place(const Matrix& w) { return w.dtype == Dtype::f32 && reinterpret_cast<std::uintptr_t>(w.data) % alignof(float) == 0; }

struct Blocking {
  std::int64_t row_panels, col_panels;       // of the whole chunk
  std::int64_t panels_per_part, col_parts;   // columns are dealt out in groups of panels
  std::int64_t row_panels_per_part, row_parts;
};

Blocking make_blocking(const GemmKernel& kernel, std::int64_t rows, std::int64_t n, std::int64_t k, int threads) {
  Blocking b{};
  b.row_panels = ceil_div(rows, kernel.rows);
  b.col_panels = ceil_div(n, kernel.cols);
  const std::int64_t wanted = rows * n * k <= kSmallWork ? 1 : (threads == 1 ? 1 : std::int64_t{threads} * 3);
  b.panels_per_part = wanted == 1 ? kMaxPanelsPerPart : std::clamp<std::int64_t>(b.col_panels / wanted, 1, kMaxPanelsPerPart);
  b.col_parts = ceil_div(b.col_panels, b.panels_per_part);
  // Few columns: the rows are shared out too, and each part packs the same panel of b for itself.
  const std::int64_t row_parts = b.col_parts >= wanted ? 1 : std::min(ceil_div(wanted, b.col_parts), b.row_panels);
  b.row_panels_per_part = ceil_div(b.row_panels, row_parts);
  b.row_parts = ceil_div(b.row_panels, b.row_panels_per_part);
  return b;
}

// The panels of b that one part uses, for one pass over the depth.
class RightPanels {
 public:
  RightPanels(const Exec& ex, const GemmKernel& kernel, const RightOperand& b, int worker, std::int64_t max_cols, std::int64_t depth)
      : ex_(ex), kernel_(kernel), b_(b), decode_(b.weight != nullptr && !readable_in_place(*b.weight)) {
    const std::int64_t panel_bytes = kernel.padded(depth) * kernel.cols * kernel.element_bytes;
    const std::int64_t decoded_bytes = decode_ ? max_cols * depth * 4 : 0;
    auto* memory = static_cast<std::byte*>(ex.pool.workspace(worker, static_cast<std::size_t>(panel_bytes + kCacheLine + decoded_bytes)));
    panel_ = memory;
    decoded_ = reinterpret_cast<float*>(memory + ceil_div(panel_bytes, kCacheLine) * kCacheLine);
  }

  // Reads columns [first, first + cols) at depths [at, at + depth): a stored weight is decoded here, once for all their panels.
  void begin(std::int64_t first, std::int64_t cols, std::int64_t at, std::int64_t depth) {
    if (b_.weight == nullptr) {
      source_ = {b_.values.data + first * b_.values.row_stride + at * b_.values.col_stride, b_.values.row_stride, b_.values.col_stride};
    } else if (!decode_) {
      const auto* w = static_cast<const float*>(b_.weight->data);
      const std::int64_t width = b_.weight->cols;
      source_ = b_.transposed ? Operand{w + at * width + first, 1, width} : Operand{w + first * width + at, width, 1};
    } else if (b_.transposed) {
      for (std::int64_t d = 0; d < depth; ++d) decode_weight(ex_.isa, *b_.weight, (at + d) * b_.weight->cols + first, cols, decoded_ + d * cols);
      source_ = {decoded_, 1, cols};
    } else {
      for (std::int64_t i = 0; i < cols; ++i) decode_weight(ex_.isa, *b_.weight, (first + i) * b_.weight->cols + at, depth, decoded_ + i * depth);
      source_ = {decoded_, depth, 1};
    }
    first_ = first;
    depth_ = depth;
  }

  const void* pack(std::int64_t col, int cols) {
    kernel_.pack_b(source_.data + (col - first_) * source_.row_stride, source_.row_stride, source_.col_stride, cols, depth_, ex_.compute == Compute::bf16,
                   panel_);
    return panel_;
  }

 private:
  const Exec& ex_;
  const GemmKernel& kernel_;
  const RightOperand& b_;
  bool decode_;
  std::byte* panel_;
  float* decoded_;
  Operand source_{};
  std::int64_t first_ = 0, depth_ = 0;
};

void empty_sum(std::int64_t m, std::int64_t n, const float* bias, Rows c, bool accumulate) {
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t i = 0; i < n; ++i) c.row(r)[i] = (accumulate ? c.row(r)[i] : 0.0f) + (bias != nullptr ? bias[i] : 0.0f);
}

// Rows [first, first + rows) of the product; rows <= kRowChunk.
void row_chunk(const Exec& ex, const GemmKernel& kernel, std::int64_t first, std::int64_t rows, std::int64_t n, std::int64_t k, float alpha, Operand a,
               const RightOperand& b, const float* bias, Rows c, bool accumulate) {
  const Blocking blocking = make_blocking(kernel, rows, n, k, ex.pool.threads());
  const std::int64_t panel_bytes = kernel.a_width * kernel.element_bytes;  // per depth
  const bool round = ex.compute == Compute::bf16;

  // a, packed: passes over the depth one after another, in each the row panels one after another.
  auto* packed = static_cast<std::byte*>(ex.pool.shared_workspace(static_cast<std::size_t>(kernel.padded(k) * blocking.row_panels * panel_bytes)));
  const auto packed_panel = [&](std::int64_t panel, std::int64_t at, std::int64_t depth) {
    return packed + (at * blocking.row_panels + panel * kernel.padded(depth)) * panel_bytes;
  };
  const auto pack_row_panel = [&](std::int64_t panel, std::int64_t at, std::int64_t depth) {
    const std::int64_t row = panel * kernel.rows;
    const int count = static_cast<int>(std::min<std::int64_t>(kernel.rows, rows - row));
    kernel.pack_a(a.data + (first + row) * a.row_stride + at * a.col_stride, a.row_stride, a.col_stride, count, depth, round,
                  packed_panel(panel, at, depth));
  };
  ex.pool.for_ranges(blocking.row_panels, kSmallPack / (kernel.rows * k) + 1, [&](std::int64_t first_panel, std::int64_t last_panel) {
    for (std::int64_t at = 0; at < k; at += kernel.depth_block)
      for (std::int64_t panel = first_panel; panel < last_panel; ++panel) pack_row_panel(panel, at, std::min(kernel.depth_block, k - at));
  });

  ex.pool.parallel(blocking.col_parts * blocking.row_parts, [&](std::int64_t part, int worker) {
    const std::int64_t col_part = part / blocking.row_parts, row_part = part % blocking.row_parts;
    const std::int64_t first_col = col_part * blocking.panels_per_part * kernel.cols;
    const std::int64_t cols = std::min(blocking.panels_per_part * kernel.cols, n - first_col);
    const std::int64_t first_panel = row_part * blocking.row_panels_per_part;
    const std::int64_t last_panel = std::min(first_panel + blocking.row_panels_per_part, blocking.row_panels);
    RightPanels right(ex, kernel, b, worker, cols, std::min(k, kernel.depth_block));
    for (std::int64_t at = 0; at < k; at += kernel.depth_block) {
      const std::int64_t depth = std::min(kernel.depth_block, k - at);
      right.begin(first_col, cols, at, depth);
      for (std::int64_t col = first_col; col < first_col + cols; col += kernel.cols) {
        const int width = static_cast<int>(std::min<std::int64_t>(kernel.cols, first_col + cols - col));
        const void* b_panel = right.pack(col, width);
        for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
          const std::int64_t row = panel * kernel.rows;
          kernel.tile(kernel.padded(depth), packed_panel(panel, at, depth), b_panel, c.row(first + row) + col, c.stride,
                      static_cast<int>(std::min<std::int64_t>(kernel.rows, rows - row)), width, alpha,
                      bias != nullptr && at == 0 ? bias + col : nullptr, accumulate || at > 0);
        }
      }
    }
  });
}

}  // namespace

const GemmKernel* gemm_kernel(Isa isa, Compute compute) noexcept {
#ifdef ENGINE_X86
  if (compute == Compute::bf16 && isa >= Isa::amx) return &gemm_kernel_amx;
  if (compute == Compute::bf16 && isa >= Isa::avx512_bf16) return &gemm_kernel_avx512bf16;
  if (isa >= Isa::avx512) return &gemm_kernel_avx512;
  if (isa >= Isa::avx2) return &gemm_kernel_avx2;
#endif
  return nullptr;
}

void gemm_blocked(const Exec& ex, const GemmKernel& kernel, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Operand a, RightOperand b,
                  const float* bias, Rows c, bool accumulate) {
  if (k == 0) return empty_sum(m, n, bias, c, accumulate);
  const std::int64_t chunk = kRowChunk / kernel.rows * kernel.rows;
  for (std::int64_t row = 0; row < m; row += chunk) row_chunk(ex, kernel, row, std::min(chunk, m - row), n, k, alpha, a, b, bias, c, accumulate);
}

}  // namespace engine
