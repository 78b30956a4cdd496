#include "ops/gemm_blocked.h"

#include <algorithm>

#include "core/code_tables.h"
#include "ops/decode.h"

namespace engine {
namespace {

constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kRowChunk = 1024;          // rows of a packed at a time: bounds the scratch memory
constexpr std::int64_t kMaxPanelsPerPart = 8;     // panels of b packed side by side: they and a block of a share the second-level cache
constexpr std::int64_t kLeftBlockBytes = 320 << 10;
constexpr std::int64_t kSmallWork = 1 << 17;      // multiply-adds that one thread does sooner than two agree to share them
constexpr std::int64_t kSmallPack = 1 << 14;      // and values to pack
constexpr std::int64_t kPrefetchBytes = 1 << 20;  // a result beyond this is not in the caches when its tiles are written
constexpr std::int64_t kSharedRight = 1 << 18;    // a right operand up to this many values is packed by every thread for itself
constexpr std::int64_t kMostOwnRows = 512;        // rows that one part packs for itself

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t aligned(std::int64_t bytes) { return ceil_div(bytes, kCacheLine) * kCacheLine; }

// fp32 weights are read in place, unless they lie at an address that a float may not have.
bool needs_decoding(const RightOperand& b) {
  return b.weight != nullptr && (b.weight->dtype != Dtype::f32 || reinterpret_cast<std::uintptr_t>(b.weight->data) % alignof(float) != 0);
}

// Weights that the kernel can pack from their codes.
bool packs_stored(const GemmKernel& kernel, const RightOperand& b) {
  if (kernel.pack_stored == nullptr || b.weight == nullptr) return false;
  return b.weight->dtype == Dtype::bf16 || (b.weight->dtype == Dtype::nf4 && b.weight->cols % 64 == 0);
}

// Asks for the stored bytes, and nf4's scales, of `count` values from element `first` on. A panel takes a short piece of every row, which
// the CPU cannot see coming.
void prefetch_weight(const Matrix& w, std::int64_t first, std::int64_t count) {
  const auto* data = static_cast<const char*>(w.data);
  const bool nf4 = w.dtype == Dtype::nf4;
  const std::int64_t begin = nf4 ? first / 2 : first * dtype_size(w.dtype), end = nf4 ? (first + count) / 2 : (first + count) * dtype_size(w.dtype);
  for (std::int64_t at = begin; at < end; at += kCacheLine) __builtin_prefetch(data + at);
  if (!nf4) return;
  const std::int64_t block = first / kNf4Block;
  if (w.nf4.absmax != nullptr)
    __builtin_prefetch(w.nf4.absmax + block);
  else
    __builtin_prefetch(w.nf4.codes + block);
}

struct Blocking {
  std::int64_t row_panels, col_panels;       // of the whole chunk
  std::int64_t panels_per_part, col_parts;   // columns are dealt out in groups of panels
  std::int64_t row_panels_per_part, row_parts;
};

Blocking make_blocking(const GemmKernel& kernel, std::int64_t rows, std::int64_t n, int threads) {
  Blocking b{};
  b.row_panels = ceil_div(rows, kernel.rows);
  b.col_panels = ceil_div(n, kernel.cols);
  const std::int64_t wanted = threads == 1 ? 1 : std::int64_t{threads} * 3;
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
  RightPanels(const Exec& ex, const GemmKernel& kernel, const RightOperand& b, std::int64_t max_cols, std::int64_t max_depth, std::byte* memory)
      : ex_(ex), kernel_(kernel), b_(b), decode_(needs_decoding(b)), panel_bytes_(kernel.padded(max_depth) * kernel.cols * kernel.element_bytes),
        panels_(memory), decoded_(reinterpret_cast<float*>(memory + aligned(ceil_div(max_cols, kernel.cols) * panel_bytes_))) {}

  static std::int64_t bytes(const GemmKernel& kernel, const RightOperand& b, std::int64_t max_cols, std::int64_t max_depth) {
    return aligned(ceil_div(max_cols, kernel.cols) * kernel.padded(max_depth) * kernel.cols * kernel.element_bytes) +
           (needs_decoding(b) && !packs_stored(kernel, b) ? aligned(max_cols * max_depth * 4) : 0);
  }

  // Packs columns [first, first + cols) at depths [at, at + depth). A stored weight is decoded here, once for all its panels.
  void pack(std::int64_t first, std::int64_t cols, std::int64_t at, std::int64_t depth) {
    if (packs_stored(kernel_, b_)) {
      const Matrix& w = *b_.weight;
      for (std::int64_t col = 0; col < cols; col += kernel_.cols) {
        if (!b_.transposed)  // the next panel's rows
          for (std::int64_t i = col + kernel_.cols; i < std::min(col + 2 * kernel_.cols, cols); ++i) prefetch_weight(w, (first + i) * w.cols + at, depth);
        kernel_.pack_stored(w, b_.transposed, first + col, static_cast<int>(std::min<std::int64_t>(kernel_.cols, cols - col)), at, depth,
                            panels_ + col / kernel_.cols * panel_bytes_);
      }
      return;
    }
    const Operand source = read(first, cols, at, depth);
    for (std::int64_t col = 0; col < cols; col += kernel_.cols)
      kernel_.pack_b(source.data + col * source.row_stride, source.row_stride, source.col_stride,
                     static_cast<int>(std::min<std::int64_t>(kernel_.cols, cols - col)), depth, ex_.compute == Compute::bf16,
                     panels_ + col / kernel_.cols * panel_bytes_);
  }
  const void* panel(std::int64_t i) const { return panels_ + i * panel_bytes_; }

 private:
  static constexpr std::int64_t kAhead = 8;  // rows between asking for one and decoding it

  Operand read(std::int64_t first, std::int64_t cols, std::int64_t at, std::int64_t depth) const {
    if (b_.weight == nullptr)
      return {b_.values.data + first * b_.values.row_stride + at * b_.values.col_stride, b_.values.row_stride, b_.values.col_stride};
    const Matrix& w = *b_.weight;
    if (!decode_) {
      const auto* data = static_cast<const float*>(w.data);
      return b_.transposed ? Operand{data + at * w.cols + first, 1, w.cols} : Operand{data + first * w.cols + at, w.cols, 1};
    }
    if (b_.transposed) {
      for (std::int64_t d = 0; d < depth; ++d) {
        if (d + kAhead < depth) prefetch_weight(w, (at + d + kAhead) * w.cols + first, cols);
        decode_weight(ex_.isa, w, (at + d) * w.cols + first, cols, decoded_ + d * cols);
      }
      return {decoded_, 1, cols};
    }
    for (std::int64_t i = 0; i < cols; ++i) {
      if (i + kAhead < cols) prefetch_weight(w, (first + i + kAhead) * w.cols + at, depth);
      decode_weight(ex_.isa, w, (first + i) * w.cols + at, depth, decoded_ + i * depth);
    }
    return {decoded_, depth, 1};
  }

  const Exec& ex_;
  const GemmKernel& kernel_;
  const RightOperand& b_;
  bool decode_;
  std::int64_t panel_bytes_;
  std::byte* panels_;
  float* decoded_;
};

// The lines a tile will write come while its sums are made.
void prefetch_rows(const float* c, std::int64_t stride, std::int64_t rows, int cols) {
  constexpr int kLineFloats = kCacheLine / 4;
  for (std::int64_t r = 0; r < rows; ++r)
    for (int i = 0; i < cols; i += kLineFloats) __builtin_prefetch(c + r * stride + i, 1);
}

void empty_sum(std::int64_t m, std::int64_t n, const float* bias, Rows c, bool accumulate) {
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t i = 0; i < n; ++i) c.row(r)[i] = (accumulate ? c.row(r)[i] : 0.0f) + (bias != nullptr ? bias[i] : 0.0f);
}

// One term of the result: alpha · Σ_k a(m,k) · b(n,k).
struct Product {
  std::int64_t depth;
  float alpha;
  Operand a;
  RightOperand b;
};

// Rows [first, first + rows) of a product's left operand in panels: passes over the depth one after another, in each the row panels.
class LeftPanels {
 public:
  LeftPanels(const GemmKernel& kernel, const Product& product, std::int64_t first, std::int64_t rows, std::byte* memory)
      : kernel_(kernel), product_(product), first_(first), rows_(rows), panels_(ceil_div(rows, kernel.rows)), memory_(memory) {}

  static std::int64_t bytes(const GemmKernel& kernel, std::int64_t rows, std::int64_t depth) {
    return aligned(kernel.padded(depth) * ceil_div(rows, kernel.rows) * kernel.a_width * kernel.element_bytes);
  }
  const std::byte* panel(std::int64_t i, std::int64_t at, std::int64_t depth) const { return place(i, at, depth); }

  std::int64_t count() const { return panels_; }
  std::int64_t grain() const { return kSmallPack / (kernel_.rows * product_.depth + 1) + 1; }
  void pack(std::int64_t begin, std::int64_t end, bool round) const {
    for (std::int64_t at = 0; at < product_.depth; at += kernel_.depth_block)
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i * kernel_.rows, depth = std::min(kernel_.depth_block, product_.depth - at);
        const Operand& a = product_.a;
        kernel_.pack_a(a.data + (first_ + row) * a.row_stride + at * a.col_stride, a.row_stride, a.col_stride,
                       static_cast<int>(std::min<std::int64_t>(kernel_.rows, rows_ - row)), depth, round, place(i, at, depth));
      }
  }

 private:
  std::byte* place(std::int64_t i, std::int64_t at, std::int64_t depth) const {
    return memory_ + (at * panels_ + i * kernel_.padded(depth)) * kernel_.a_width * kernel_.element_bytes;
  }

  const GemmKernel& kernel_;
  const Product& product_;
  std::int64_t first_, rows_, panels_;
  std::byte* memory_;
};

// The part of the result that one thread makes: some columns of some row panels of `left`, whose first row is `first_row` of c.
struct Part {
  std::int64_t first_row, rows;
  std::int64_t first_panel, last_panel;
  std::int64_t first_col, cols;
  bool prefetch;
};

void add_product(const Exec& ex, const GemmKernel& kernel, const Product& product, const LeftPanels& left, const Part& part, std::byte* memory,
                 const float* bias, Rows c, bool accumulate) {
  RightPanels right(ex, kernel, product.b, part.cols, std::min(product.depth, kernel.depth_block), memory);
  for (std::int64_t at = 0; at < product.depth; at += kernel.depth_block) {
    const std::int64_t depth = std::min(kernel.depth_block, product.depth - at);
    right.pack(part.first_col, part.cols, at, depth);
    // A block of a stays in the second-level cache while every panel of b, one after another in the first, goes over it.
    const std::int64_t block = std::max<std::int64_t>(1, kLeftBlockBytes / (kernel.padded(depth) * kernel.a_width * kernel.element_bytes));
    for (std::int64_t begin = part.first_panel; begin < part.last_panel; begin += block)
      for (std::int64_t col = 0; col < part.cols; col += kernel.cols)
        for (std::int64_t i = begin; i < std::min(begin + block, part.last_panel); ++i) {
          const std::int64_t row = i * kernel.rows, out_col = part.first_col + col;
          const std::int64_t height = std::min<std::int64_t>(kernel.rows, part.rows - row), width = std::min<std::int64_t>(kernel.cols, part.cols - col);
          float* out = c.row(part.first_row + row) + out_col;
          if (part.prefetch) prefetch_rows(out, c.stride, height, kernel.cols);
          kernel.tile(kernel.padded(depth), left.panel(i, at, depth), right.panel(col / kernel.cols), out, c.stride, static_cast<int>(height),
                      static_cast<int>(width), product.alpha, bias != nullptr && at == 0 ? bias + out_col : nullptr, accumulate || at > 0);
        }
  }
}

// The two terms of a result and what is added to them.
struct Job {
  const Exec& ex;
  const GemmKernel& kernel;
  const Product &main, &extra;
  const float* bias;
  Rows c;
  bool accumulate;

  std::int64_t right_bytes(std::int64_t cols) const {
    const auto of = [&](const Product& p) { return RightPanels::bytes(kernel, p.b, cols, std::min(p.depth, kernel.depth_block)); };
    return std::max(of(main), of(extra));
  }
  void add_both(const LeftPanels& left, const LeftPanels& extra_left, const Part& part, std::byte* memory) const {
    add_product(ex, kernel, main, left, part, memory, bias, c, accumulate);
    if (extra.depth > 0) add_product(ex, kernel, extra, extra_left, part, memory, nullptr, c, true);
  }
};

// A small right operand: each part owns some rows from beginning to end. It packs them and the whole right operand for itself, so that
// nothing travels between cores and nobody waits for anybody's packing.
void by_rows(const Job& job, std::int64_t parts) {
  const GemmKernel& kernel = job.kernel;
  const std::int64_t m = job.c.rows, n = job.c.cols, panels = ceil_div(m, kernel.rows), cols = std::min(n, kMaxPanelsPerPart * kernel.cols);
  const bool round = job.ex.compute == Compute::bf16;
  job.ex.pool.parallel(parts, [&](std::int64_t index, int worker) {
    const std::int64_t first = panels * index / parts * kernel.rows, rows = std::min(panels * (index + 1) / parts * kernel.rows, m) - first;
    if (rows <= 0) return;
    const std::int64_t left_bytes = LeftPanels::bytes(kernel, rows, job.main.depth), extra_bytes = LeftPanels::bytes(kernel, rows, job.extra.depth);
    auto* memory = static_cast<std::byte*>(job.ex.pool.workspace(worker, static_cast<std::size_t>(left_bytes + extra_bytes + job.right_bytes(cols))));
    const LeftPanels left(kernel, job.main, first, rows, memory), extra_left(kernel, job.extra, first, rows, memory + left_bytes);
    left.pack(0, left.count(), round);
    extra_left.pack(0, extra_left.count(), round);
    for (std::int64_t col = 0; col < n; col += cols)
      job.add_both(left, extra_left, Part{first, rows, 0, left.count(), col, std::min(cols, n - col), m * n * 4 > kPrefetchBytes}, memory + left_bytes + extra_bytes);
  });
}

// Rows [first, first + rows) of the result, rows <= kRowChunk: the left operand is packed by all, then each part owns some columns.
void by_columns(const Job& job, std::int64_t first, std::int64_t rows) {
  const GemmKernel& kernel = job.kernel;
  ThreadPool& pool = job.ex.pool;
  const std::int64_t n = job.c.cols;
  const bool round = job.ex.compute == Compute::bf16;
  const Blocking blocking = make_blocking(kernel, rows, n, pool.threads());
  const std::int64_t left_bytes = LeftPanels::bytes(kernel, rows, job.main.depth);
  auto* packed = static_cast<std::byte*>(pool.shared_workspace(static_cast<std::size_t>(left_bytes + LeftPanels::bytes(kernel, rows, job.extra.depth))));
  const LeftPanels left(kernel, job.main, first, rows, packed), extra_left(kernel, job.extra, first, rows, packed + left_bytes);
  pool.for_ranges(left.count(), left.grain(), [&](std::int64_t begin, std::int64_t end) {
    left.pack(begin, end, round);
    extra_left.pack(begin, end, round);
  });
  const std::int64_t cols = blocking.panels_per_part * kernel.cols;
  const auto right_bytes = static_cast<std::size_t>(job.right_bytes(std::min(cols, n)));
  pool.parallel(blocking.col_parts * blocking.row_parts, [&](std::int64_t index, int worker) {
    const std::int64_t first_col = index / blocking.row_parts * cols, first_panel = index % blocking.row_parts * blocking.row_panels_per_part;
    const Part part{first,
                    rows,
                    first_panel,
                    std::min(first_panel + blocking.row_panels_per_part, blocking.row_panels),
                    first_col,
                    std::min(cols, n - first_col),
                    rows * n * 4 > kPrefetchBytes};
    job.add_both(left, extra_left, part, static_cast<std::byte*>(pool.workspace(worker, right_bytes)));
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
                  const float* bias, Rows c, bool accumulate, ExtraProduct extra) {
  const Product product{k, alpha, a, b}, second{extra.depth, extra.alpha, extra.a, {extra.b, nullptr, false}};
  if (k == 0) {
    empty_sum(m, n, bias, c, accumulate);
    if (extra.depth > 0) gemm_blocked(ex, kernel, m, n, extra.depth, extra.alpha, extra.a, second.b, nullptr, c, true);
    return;
  }
  const Job job{ex, kernel, product, second, bias, c, accumulate};
  const std::int64_t threads = ex.pool.threads(), panels = ceil_div(m, kernel.rows);
  if (m * n * k <= kSmallWork) return by_rows(job, ceil_div(m, kMostOwnRows));
  if (n * k <= kSharedRight && panels >= 4 * threads) return by_rows(job, std::max(2 * threads, ceil_div(m, kMostOwnRows)));
  const std::int64_t chunk = kRowChunk / kernel.rows * kernel.rows;
  for (std::int64_t row = 0; row < m; row += chunk) by_columns(job, row, std::min(chunk, m - row));
}

}  // namespace engine
