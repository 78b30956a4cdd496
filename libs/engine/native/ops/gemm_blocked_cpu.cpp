#include "ops/gemm_blocked.h"

#include <algorithm>
#include <span>

#include "core/code_tables.h"
#include "ops/decode.h"

namespace engine {
namespace {

constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kRowChunk = 1024;          // rows of a packed at a time: bounds the scratch memory
constexpr std::int64_t kMaxPanelsPerPart = 8;     // panels of b packed side by side: they and a block of a share the second-level cache
constexpr std::int64_t kRightBytes = 1 << 20;     // and at most so many bytes, if that is two panels or more
constexpr std::int64_t kLeftBlockBytes = 320 << 10;
constexpr std::int64_t kSmallWork = 1 << 17;      // multiply-adds that one thread does sooner than two agree to share them
constexpr std::int64_t kSmallPack = 1 << 14;      // and values to pack
constexpr std::int64_t kPrefetchBytes = 1 << 20;  // a result beyond this is not in the caches when its tiles are written
constexpr std::int64_t kSharedRight = 1 << 18;    // a right operand up to this many values is packed by every thread for itself
constexpr std::int64_t kMostOwnRows = 512;        // rows that one part packs for itself
constexpr int kMostLanes = 16;

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

// One term of the result: alpha · Σ_k a(m,k) · b(n,k). lanes: of lane_order.h, 0 to sum straight through.
struct Product {
  std::int64_t depth;
  float alpha;
  Operand a;
  RightOperand b;
  int lanes = 0;
};

// Depths [at, at + depth) of a product: packed at once, as `chains` sums of `chain` depths each, which go over the tiles in passes.
struct Sweep {
  std::int64_t at, depth, chain, chains, chains_per_pass;

  Sweep(const GemmKernel& kernel, const Product& product, std::int64_t first) : at(first) {
    const std::int64_t left = product.depth - first;
    if (product.lanes == 0) {
      depth = std::min(kernel.depth_block, left);
      chain = kernel.padded(depth);
      chains = chains_per_pass = 1;
    } else {
      depth = std::min(lane_sweep(product.lanes), left);
      chain = lane_chain(depth, product.lanes);
      chains = product.lanes;
      chains_per_pass = std::clamp<std::int64_t>(kernel.depth_block / chain, 1, chains);
    }
  }
  std::int64_t end() const { return at + depth; }
  std::int64_t packed() const { return chain * chains; }
  std::int64_t chains_of_pass(std::int64_t first_chain) const { return std::min(chains_per_pass, chains - first_chain); }
};

// Packed depths of a whole product. Only the last sweep is padded.
std::int64_t packed_depth(const GemmKernel& kernel, const Product& product) {
  if (product.depth == 0) return 0;
  const std::int64_t longest = product.lanes == 0 ? kernel.depth_block : lane_sweep(product.lanes), last = (product.depth - 1) / longest * longest;
  return last + Sweep(kernel, product, last).packed();
}

struct Blocking {
  std::int64_t row_panels, col_panels;       // of the whole chunk
  std::int64_t panels_per_part, col_parts;   // columns are dealt out in groups of panels
  std::int64_t row_panels_per_part, row_parts;
};

// Panels of b that a part packs side by side at most.
std::int64_t most_panels(const GemmKernel& kernel, const Product& product) {
  const std::int64_t panel = Sweep(kernel, product, 0).packed() * kernel.cols * kernel.element_bytes;
  return std::clamp<std::int64_t>(kRightBytes / (panel + 1), 2, kMaxPanelsPerPart);
}

Blocking make_blocking(const GemmKernel& kernel, std::int64_t rows, std::int64_t n, int threads, std::int64_t most) {
  Blocking b{};
  b.row_panels = ceil_div(rows, kernel.rows);
  b.col_panels = ceil_div(n, kernel.cols);
  const std::int64_t wanted = threads == 1 ? 1 : std::int64_t{threads} * 3;
  b.panels_per_part = wanted == 1 ? most : std::clamp<std::int64_t>(b.col_panels / wanted, 1, most);
  b.col_parts = ceil_div(b.col_panels, b.panels_per_part);
  // Few columns: the rows are shared out too, and each part packs the same panel of b for itself.
  const std::int64_t row_parts = b.col_parts >= wanted ? 1 : std::min(ceil_div(wanted, b.col_parts), b.row_panels);
  b.row_panels_per_part = ceil_div(b.row_panels, row_parts);
  b.row_parts = ceil_div(b.row_panels, b.row_panels_per_part);
  return b;
}

// The panels of b that one part uses, for one sweep over the depth.
class RightPanels {
 public:
  RightPanels(const Exec& ex, const GemmKernel& kernel, const Product& product, std::int64_t max_cols, std::byte* memory)
      : ex_(ex), kernel_(kernel), product_(product), b_(product.b), decode_(needs_decoding(b_)), panel_bytes_(panel_bytes(kernel, product)),
        panels_(memory), decoded_(reinterpret_cast<float*>(memory + aligned(ceil_div(max_cols, kernel.cols) * panel_bytes_))) {}

  static std::int64_t bytes(const GemmKernel& kernel, const Product& product, std::int64_t max_cols) {
    if (product.depth == 0) return 0;
    const bool decodes = needs_decoding(product.b) && !packs_stored(kernel, product.b);
    return aligned(ceil_div(max_cols, kernel.cols) * panel_bytes(kernel, product)) +
           (decodes ? aligned(decoded_cols(kernel, product, max_cols) * Sweep(kernel, product, 0).depth * 4) : 0);
  }

  // Packs columns [first, first + cols) of a sweep. A stored weight is decoded here, once for all its rows.
  void pack(std::int64_t first, std::int64_t cols, const Sweep& sweep) {
    if (packs_stored(kernel_, b_)) return pack_stored(first, cols, sweep);
    const std::int64_t step = decoded_cols(kernel_, product_, cols);
    for (std::int64_t begin = 0; begin < cols; begin += step) {
      const std::int64_t count = std::min(step, cols - begin);
      const Operand source = read(first + begin, count, sweep.at, sweep.depth);
      for (std::int64_t col = 0; col < count; col += kernel_.cols)
        pack_panel({source.data + col * source.row_stride, source.row_stride, source.col_stride},
                   static_cast<int>(std::min<std::int64_t>(kernel_.cols, count - col)), sweep, panels_ + (begin + col) / kernel_.cols * panel_bytes_);
    }
  }
  // Panel i at a chain.
  const void* panel(std::int64_t i, const Sweep& sweep, std::int64_t chain) const {
    return panels_ + i * panel_bytes_ + chain * sweep.chain * kernel_.cols * kernel_.element_bytes;
  }

 private:
  static constexpr std::int64_t kAhead = 8;  // rows between asking for one and decoding it

  static std::int64_t panel_bytes(const GemmKernel& kernel, const Product& product) {
    return Sweep(kernel, product, 0).packed() * kernel.cols * kernel.element_bytes;
  }
  // A long sweep is decoded one panel at a time, so that it is packed out of the cache.
  static std::int64_t decoded_cols(const GemmKernel& kernel, const Product& product, std::int64_t cols) {
    return product.lanes == 0 ? cols : std::min<std::int64_t>(cols, kernel.cols);
  }

  void pack_stored(std::int64_t first, std::int64_t cols, const Sweep& sweep) {
    const Matrix& w = *b_.weight;
    if (b_.transposed) return kernel_.pack_stored(w, true, first, cols, sweep.at, sweep.depth, panels_, panel_bytes_);
    for (std::int64_t col = 0; col < cols; col += kernel_.cols) {
      for (std::int64_t i = col + kernel_.cols; i < std::min(col + 2 * kernel_.cols, cols); ++i)  // the next panel's rows
        prefetch_weight(w, (first + i) * w.cols + sweep.at, sweep.depth);
      kernel_.pack_stored(w, false, first + col, std::min<std::int64_t>(kernel_.cols, cols - col), sweep.at, sweep.depth,
                          panels_ + col / kernel_.cols * panel_bytes_, panel_bytes_);
    }
  }

  void pack_panel(Operand source, int count, const Sweep& sweep, std::byte* panel) const {
    const bool round = ex_.compute == Compute::bf16;
    if (product_.lanes == 0) return kernel_.pack_b(source.data, source.row_stride, source.col_stride, count, sweep.depth, round, panel);
    std::int64_t chain_at[kMostLanes];
    for (std::int64_t i = 0; i < sweep.chains; ++i) chain_at[i] = i * sweep.chain * kernel_.cols;
    kernel_.pack_b_lanes(source.data, source.row_stride, count, sweep.depth, round, reinterpret_cast<float*>(panel), chain_at);
  }

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
  const Product& product_;
  const RightOperand& b_;
  bool decode_;
  std::int64_t panel_bytes_;
  std::byte* panels_;
  float* decoded_;
};

void empty_sum(std::int64_t m, std::int64_t n, const float* bias, Rows c, bool accumulate) {
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t i = 0; i < n; ++i) c.row(r)[i] = (accumulate ? c.row(r)[i] : 0.0f) + (bias != nullptr ? bias[i] : 0.0f);
}

// Rows [first, first + rows) of a product's left operand in panels: passes over the depth one after another, in each the row panels.
class LeftPanels {
 public:
  LeftPanels(const GemmKernel& kernel, const Product& product, std::int64_t first, std::int64_t rows, std::byte* memory)
      : kernel_(kernel), product_(product), first_(first), rows_(rows), panels_(ceil_div(rows, kernel.rows)), memory_(memory) {}

  static std::int64_t bytes(const GemmKernel& kernel, const Product& product, std::int64_t rows) {
    return aligned(packed_depth(kernel, product) * ceil_div(rows, kernel.rows) * kernel.a_width * kernel.element_bytes);
  }
  // Panel i at a chain of a sweep.
  const std::byte* panel(std::int64_t i, const Sweep& sweep, std::int64_t chain) const { return memory_ + place(i, sweep, chain) * kernel_.element_bytes; }
  // From a panel to the next.
  std::int64_t panel_stride(const Sweep& sweep, std::int64_t chain) const { return (place(1, sweep, chain) - place(0, sweep, chain)) * kernel_.element_bytes; }

  // Panels [begin, end) of one chain's pass; empty when there are none.
  std::span<const std::byte> block(std::int64_t begin, std::int64_t end, const Sweep& sweep, std::int64_t chain) const {
    if (begin >= end) return {};
    return {panel(begin, sweep, chain), static_cast<std::size_t>((end - begin) * panel_stride(sweep, chain))};
  }

  std::int64_t count() const { return panels_; }
  std::int64_t grain() const { return kSmallPack / (kernel_.rows * product_.depth + 1) + 1; }
  void pack(std::int64_t begin, std::int64_t end, bool round) const {
    const Operand& a = product_.a;
    const bool for_nf4 = kernel_.pack_a_for_nf4 != nullptr && packs_stored(kernel_, product_.b) && product_.b.weight->dtype == Dtype::nf4 && !product_.b.transposed;
    const GemmKernel::Pack pack_a = for_nf4 ? kernel_.pack_a_for_nf4 : kernel_.pack_a;
    for (std::int64_t at = 0; at < product_.depth;) {
      const Sweep sweep(kernel_, product_, at);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i * kernel_.rows;
        const float* source = a.data + (first_ + row) * a.row_stride + at * a.col_stride;
        const int count = static_cast<int>(std::min<std::int64_t>(kernel_.rows, rows_ - row));
        if (product_.lanes == 0) {
          pack_a(source, a.row_stride, a.col_stride, count, sweep.depth, round, memory_ + place(i, sweep, 0) * kernel_.element_bytes);
          continue;
        }
        std::int64_t chain_at[kMostLanes];
        for (std::int64_t chain = 0; chain < sweep.chains; ++chain) chain_at[chain] = place(i, sweep, chain);
        kernel_.pack_a_lanes(source, a.row_stride, count, sweep.depth, round, reinterpret_cast<float*>(memory_), chain_at);
      }
      at = sweep.end();
    }
  }

 private:
  // In values.
  std::int64_t place(std::int64_t i, const Sweep& sweep, std::int64_t chain) const {
    const std::int64_t first_chain = chain / sweep.chains_per_pass * sweep.chains_per_pass;
    const std::int64_t before = (sweep.at + first_chain * sweep.chain) * panels_, pass = sweep.chains_of_pass(first_chain) * sweep.chain;
    return (before + i * pass + (chain - first_chain) * sweep.chain) * kernel_.a_width;
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
  RightPanels right(ex, kernel, product, part.cols, memory);
  // Row panels [begin, end) over one chain of a sweep: one sum, added to the result by itself.
  const auto column = [&](const Sweep& sweep, std::int64_t chain, std::int64_t begin, std::int64_t end, std::int64_t col, std::span<const std::byte> ahead) {
    const std::int64_t row = begin * kernel.rows, out_col = part.first_col + col;
    const bool first = sweep.at == 0 && chain == 0;
    kernel.tiles({.depth = sweep.chain,
                  .a = left.panel(begin, sweep, chain),
                  .a_stride = left.panel_stride(sweep, chain),
                  .b = right.panel(col / kernel.cols, sweep, chain),
                  .c = c.row(part.first_row + row) + out_col,
                  .stride = c.stride,
                  .rows = std::min(end * kernel.rows, part.rows) - row,
                  .cols = static_cast<int>(std::min<std::int64_t>(kernel.cols, part.cols - col)),
                  .alpha = product.alpha,
                  .bias = first && bias != nullptr ? bias + out_col : nullptr,
                  .accumulate = accumulate || !first,
                  .prefetch = part.prefetch,
                  .ahead = ahead.data(),
                  .ahead_bytes = static_cast<std::int64_t>(ahead.size())});
  };
  for (std::int64_t at = 0; at < product.depth;) {
    const Sweep sweep(kernel, product, at);
    right.pack(part.first_col, part.cols, sweep);
    // A block of a stays in the second-level cache while every panel of b, one after another in the first, goes over it.
    const std::int64_t pass_bytes = sweep.chains_per_pass * sweep.chain * kernel.a_width * kernel.element_bytes;
    const std::int64_t block = std::max<std::int64_t>(1, kLeftBlockBytes / pass_bytes);
    for (std::int64_t pass = 0; pass < sweep.chains; pass += sweep.chains_per_pass)
      for (std::int64_t begin = part.first_panel; begin < part.last_panel; begin += block) {
        const std::int64_t end = std::min(begin + block, part.last_panel);
        // The block of a that comes next lies in another core's cache, or none: each column brings its share of it nearer.
        const std::span<const std::byte> next = left.block(end, std::min(end + block, part.last_panel), sweep, pass);
        for (std::int64_t col = 0; col < part.cols; col += kernel.cols) {
          if (sweep.chains_of_pass(pass) == 1) {
            const auto size = static_cast<std::int64_t>(next.size());
            const std::int64_t from = size * col / part.cols, to = size * std::min(col + kernel.cols, part.cols) / part.cols;
            column(sweep, pass, begin, end, col, next.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from)));
            continue;
          }
          for (std::int64_t i = begin; i < end; ++i)  // a tile of the result stays in the first-level cache for all its chains
            for (std::int64_t chain = pass; chain < pass + sweep.chains_of_pass(pass); ++chain) column(sweep, chain, i, i + 1, col, {});
        }
      }
    at = sweep.end();
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
    return std::max(RightPanels::bytes(kernel, main, cols), RightPanels::bytes(kernel, extra, cols));
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
  const std::int64_t m = job.c.rows, n = job.c.cols, panels = ceil_div(m, kernel.rows);
  const std::int64_t cols = std::min(n, most_panels(kernel, job.main) * kernel.cols);
  const bool round = job.ex.compute == Compute::bf16;
  job.ex.pool.parallel(parts, [&](std::int64_t index, int worker) {
    const std::int64_t first = panels * index / parts * kernel.rows, rows = std::min(panels * (index + 1) / parts * kernel.rows, m) - first;
    if (rows <= 0) return;
    const std::int64_t left_bytes = LeftPanels::bytes(kernel, job.main, rows), extra_bytes = LeftPanels::bytes(kernel, job.extra, rows);
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
  const Blocking blocking = make_blocking(kernel, rows, n, pool.threads(), most_panels(kernel, job.main));
  const std::int64_t left_bytes = LeftPanels::bytes(kernel, job.main, rows);
  auto* packed = static_cast<std::byte*>(pool.shared_workspace(static_cast<std::size_t>(left_bytes + LeftPanels::bytes(kernel, job.extra, rows))));
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
                  const float* bias, Rows c, bool accumulate, ExtraProduct extra, DepthOrder order) {
  const Product product{k, alpha, a, b, order == DepthOrder::by_lanes ? kernel.lanes : 0}, second{extra.depth, extra.alpha, extra.a, {extra.b, nullptr, false}};
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
