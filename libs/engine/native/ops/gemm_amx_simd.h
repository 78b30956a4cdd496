// gemm_amx_simd.h: the GemmKernel of tdpbf16ps: 32 x 32 outputs as two by two tile registers. A step of 32 depths is four tile loads and four products
//   of 16 cycles each.
//   A panel is cut into steps of 32 depths. a: [step][half][16 rows][32 depths]; b: [step][half][16 pairs][16 columns][2], both bf16,
//   so that every tile register loads 16 rows of 64 bytes that lie one after another.
#pragma once

#include "ops/gemm_bf16_simd.h"
#include "ops/stored_pairs_simd.h"

namespace engine {
namespace {
namespace amx {

constexpr int kTileRows = 32, kTileCols = 32, kStep = 32;
constexpr std::int64_t kDepthBlock = 2048;  // results are read and written again for every block: few blocks
constexpr int kHalfBytes = 16 * 64, kStepBytes = 2 * kHalfBytes;

void pack_a(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kStep)
    for (int half = 0; half < 2; ++half) {
      __m512i words[16];
      load_pairs_by_row(source + 16 * half * stride + d * depth_stride, stride, depth_stride, count - 16 * half, depth - d, words);
      auto* out = static_cast<std::uint8_t*>(panel) + d / kStep * kStepBytes + half * kHalfBytes;
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + 64 * i, words[i]);
    }
}

// With the pairs of every step in the order in which nf4's are looked up.
void pack_a_for_nf4(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool round, void* panel) {
  pack_a(source, stride, depth_stride, count, depth, round, panel);
  const __m512i order = nf4_pair_order();
  auto* row = static_cast<std::uint8_t*>(panel);
  for (std::int64_t rows = (depth + kStep - 1) / kStep * kTileRows; rows > 0; --rows, row += 64)
    _mm512_storeu_si512(row, _mm512_permutexvar_epi32(order, _mm512_loadu_si512(row)));
}

void pack_b(const float* source, std::int64_t stride, std::int64_t depth_stride, int count, std::int64_t depth, bool, void* panel) {
  for (std::int64_t d = 0; d < depth; d += kStep)
    for (int half = 0; half < 2; ++half) {
      __m512i words[16];
      load_pairs_by_depth(source + 16 * half * stride + d * depth_stride, stride, depth_stride, count - 16 * half, depth - d, words);
      auto* out = static_cast<std::uint8_t*>(panel) + d / kStep * kStepBytes + half * kHalfBytes;
      for (int p = 0; p < 16; ++p) _mm512_storeu_si512(out + 64 * p, words[p]);
    }
}

// The same panels of b from a stored weight whose rows are the panels' columns: runs along a row, turned 16 rows at a time.
void pack_stored_rows(const Matrix& w, std::int64_t first, std::int64_t count, std::int64_t at, std::int64_t depth, std::uint8_t* panels,
                      std::int64_t panel_bytes) {
  for (std::int64_t i = 0; i < count; i += 16) {
    std::uint8_t* out = panels + i / kTileCols * panel_bytes + i % kTileCols / 16 * kHalfBytes;
    const std::int64_t rows = count - i < 16 ? count - i : 16, start = (first + i) * w.cols + at;
    __m512i tables[16];
    for (std::int64_t d = 0; d < depth; d += kStep, out += kStepBytes) {
      if (d == 0 || (at + d) % 64 == 0)
        for (std::int64_t r = 0; r < rows; ++r) tables[r] = stored_table(w, start + r * w.cols + d);
      __m512i words[16];
      for (std::int64_t r = 0; r < 16; ++r) words[r] = r < rows ? stored_run(w, start + r * w.cols + d, depth - d, tables[r]) : _mm512_setzero_si512();
      transpose_words(words);
      for (int p = 0; p < 16; ++p) _mm512_storeu_si512(out + 64 * p, words[p]);
    }
  }
}

// And from one whose rows are depths: two rows at a time, interleaved. A table serves the 64 columns of its block, two panels.
void pack_stored_columns(const Matrix& w, std::int64_t first, std::int64_t count, std::int64_t at, std::int64_t depth, std::uint8_t* panels,
                         std::int64_t panel_bytes) {
  constexpr std::int64_t kRowsAhead = 32;
  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  const std::int64_t bits = w.dtype == Dtype::nf4 ? 4 : 16;
  const InterleavePlaces& places = w.dtype == Dtype::nf4 ? kNf4Places : kPlainPlaces;
  const __m512i left_places = _mm512_loadu_si512(places.at[0]), right_places = _mm512_loadu_si512(places.at[1]);
  for (std::int64_t d = 0; d < (depth + kStep - 1) / kStep * kStep; d += 2) {
    for (std::int64_t row = at + d + kRowsAhead; row < at + d + kRowsAhead + 2 && row < w.rows; ++row)
      for (std::int64_t byte = (row * w.cols + first) * bits / 8; byte < (row * w.cols + first + count) * bits / 8; byte += 64) __builtin_prefetch(bytes + byte);
    const std::int64_t even = (at + d) * w.cols, odd = even + w.cols;
    __m512i even_table = _mm512_setzero_si512(), odd_table = even_table;
    for (std::int64_t i = 0; i < count; i += kTileCols) {
      const std::int64_t col = first + i, left = w.cols - col;
      if (i == 0 || col % 64 == 0) {
        if (d < depth) even_table = stored_table(w, even + col);
        if (d + 1 < depth) odd_table = stored_table(w, odd + col);
      }
      const __m512i x = d < depth ? stored_run(w, even + col, left, even_table) : _mm512_setzero_si512();
      const __m512i y = d + 1 < depth ? stored_run(w, odd + col, left, odd_table) : _mm512_setzero_si512();
      std::uint8_t* out = panels + i / kTileCols * panel_bytes + d / kStep * kStepBytes + d % kStep / 2 * 64;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(x, left_places, y));
      _mm512_storeu_si512(out + kHalfBytes, _mm512_permutex2var_epi16(x, right_places, y));
    }
  }
}

void pack_stored(const Matrix& w, bool transposed, std::int64_t first, std::int64_t count, std::int64_t at, std::int64_t depth, void* panels,
                 std::int64_t panel_bytes) {
  (transposed ? pack_stored_columns : pack_stored_rows)(w, first, count, at, depth, static_cast<std::uint8_t*>(panels), panel_bytes);
}

// Registers 0-3: sums; 4, 5: halves of a; 6, 7: halves of b. All 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig{};
static_assert(sizeof(TileConfig) == 64);

// A tile's sums on their way into the result: finished a few rows at a time between the tile instructions of the tile after it, which leave the
// vector units idle. Until then, the lines that they go to are asked for.
class Finish {
 public:
  explicit Finish(const TileColumn& column)
      : column_(column), alpha_(broadcast(column.alpha)), left_(column.cols < 16 ? column.cols : 16), right_(column.cols - left_) {}

  void begin(const float* sums, float* c, int rows) {
    sums_ = sums, c_ = c, rows_ = rows;
  }
  void some(int rows) {
    for (; rows > 0 && rows_ > 0; --rows, --rows_, sums_ += kTileCols, c_ += column_.stride) {
      add(sums_, c_, left_, column_.bias);
      if (right_ > 0) add(sums_ + 16, c_ + 16, right_, column_.bias != nullptr ? column_.bias + 16 : nullptr);
    }
  }
  void all() { some(rows_); }

 private:
  void add(const float* sums, float* c, int count, const float* bias) const { finish(load(sums), c, count, alpha_, bias, column_.accumulate); }

  const TileColumn& column_;
  Vec alpha_;
  int left_, right_;
  const float* sums_ = nullptr;
  float* c_ = nullptr;
  int rows_ = 0;
};

// Brings a column's `ahead` into the second-level cache, an equal share at each of its steps.
class Ahead {
 public:
  explicit Ahead(const TileColumn& column) : at_(static_cast<const std::uint8_t*>(column.ahead)), end_(at_ + column.ahead_bytes) {
    const std::int64_t steps = (column.rows + kTileRows - 1) / kTileRows * (column.depth / kStep);
    share_ = steps > 0 ? (column.ahead_bytes / 64 + steps - 1) / steps * 64 : 0;
  }
  void step() {
    for (const std::uint8_t* stop = end_ - at_ < share_ ? end_ : at_ + share_; at_ < stop; at_ += 64) _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }

 private:
  const std::uint8_t *at_, *end_;
  std::int64_t share_;
};

// sums[32][32] from as many halves as the tile has rows and columns, with `before` finished on the way. c: where these sums will go.
template <bool two_rows, bool two_cols>
void multiply(const TileColumn& column, const std::uint8_t* a, float* c, int rows, float* sums, Finish& before, Ahead& ahead) {
  const auto* b = static_cast<const std::uint8_t*>(column.b);
  const int share = static_cast<int>((kTileRows * kStep + column.depth - 1) / column.depth);  // rows of other tiles to deal with at each step
  ENGINE_TILE_ZERO(0);
  if constexpr (two_cols) ENGINE_TILE_ZERO(1);
  if constexpr (two_rows) ENGINE_TILE_ZERO(2);
  if constexpr (two_rows && two_cols) ENGINE_TILE_ZERO(3);
  for (std::int64_t d = 0; d < column.depth; d += kStep) {
    ahead.step();
    ENGINE_TILE_LOAD(6, b, 64);
    ENGINE_TILE_LOAD(4, a, 64);
    ENGINE_TILE_DOT(0, 4, 6);
    if constexpr (two_cols) {
      ENGINE_TILE_LOAD(7, b + kHalfBytes, 64);
      ENGINE_TILE_DOT(1, 4, 7);
    }
    if constexpr (two_rows) {
      ENGINE_TILE_LOAD(5, a + kHalfBytes, 64);
      ENGINE_TILE_DOT(2, 5, 6);
      if constexpr (two_cols) ENGINE_TILE_DOT(3, 5, 7);
    }
    before.some(share);
    if (column.prefetch && rows > 0) {
      prefetch_rows(c, column.stride, rows < share ? rows : share);
      c += share * column.stride;
      rows -= share;
    }
    a += kStepBytes;
    b += kStepBytes;
  }
  constexpr int kRowBytes = kTileCols * 4;
  ENGINE_TILE_STORE(0, sums, kRowBytes);
  if constexpr (two_cols) ENGINE_TILE_STORE(1, sums + 16, kRowBytes);
  if constexpr (two_rows) ENGINE_TILE_STORE(2, sums + 16 * kTileCols, kRowBytes);
  if constexpr (two_rows && two_cols) ENGINE_TILE_STORE(3, sums + 16 * kTileCols + 16, kRowBytes);
}

void tiles(const TileColumn& column) {
  alignas(64) float sums[2][kTileRows * kTileCols];
  Finish before(column);
  Ahead ahead(column);
  int turn = 0;
  // Configured and released here, so that no thread keeps tile state the system would have to save at every switch.
  ENGINE_TILE_CONFIGURE(&kTileConfig);
  const auto* a = static_cast<const std::uint8_t*>(column.a);
  float* c = column.c;
  for (std::int64_t left = column.rows; left > 0; left -= kTileRows, a += column.a_stride, c += kTileRows * column.stride, turn ^= 1) {
    const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
    if (rows > 16)
      column.cols > 16 ? multiply<true, true>(column, a, c, rows, sums[turn], before, ahead) : multiply<true, false>(column, a, c, rows, sums[turn], before, ahead);
    else
      column.cols > 16 ? multiply<false, true>(column, a, c, rows, sums[turn], before, ahead) : multiply<false, false>(column, a, c, rows, sums[turn], before, ahead);
    before.all();
    before.begin(sums[turn], c, rows);
  }
  ENGINE_TILE_RELEASE();
  before.all();
}

constexpr GemmKernel kKernel = {.rows = kTileRows,
                                .cols = kTileCols,
                                .a_width = kTileRows,
                                .depth_step = kStep,
                                .element_bytes = 2,
                                .depth_block = kDepthBlock,
                                .pack_a = pack_a,
                                .pack_b = pack_b,
                                .pack_a_for_nf4 = pack_a_for_nf4,
                                .lanes = 0,
                                .pack_a_lanes = nullptr,
                                .pack_b_lanes = nullptr,
                                .pack_stored = pack_stored,
                                .tiles = tiles};

}  // namespace amx
}  // namespace
}  // namespace engine
