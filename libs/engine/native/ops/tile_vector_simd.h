// tile_vector_simd.h: linear for up to 16 rows with tdpbf16ps: the weights are the left operand.
//   A tile of 16 weight rows by 32 depths lies as the weight does, so bf16 is loaded in place and NF4 is looked up without a transpose; x is
//   packed once as the right operand. Every sum is the one that gemm_amx_simd.h makes with the operands the other way round, bit for bit:
//   the instruction's products and order do not depend on the sides.
#pragma once

#include "ops/gemm_amx_simd.h"

namespace engine {
namespace {
namespace amx {

constexpr int kFewRows = 16, kChunkSteps = 8;

std::int64_t few_rows_bytes(std::int64_t depth) { return (depth + kStep - 1) / kStep * kHalfBytes; }

// packed[step][16 pairs][rows of x][2]: as few bytes as there are rows, so that x stays in the first-level cache.
void pack_few_rows(ConstRows x, bool for_nf4, void* packed) {
  const auto lanes = static_cast<__mmask16>((1u << x.rows) - 1u);
  auto* out = static_cast<std::uint8_t*>(packed);
  if (x.rows == 1) {  // as it is
    for (std::int64_t d = 0; d < x.cols; d += kStep, out += 64) {
      const __m512i pairs = pairs_of_row(x.data + d, x.cols - d);
      _mm512_storeu_si512(out, for_nf4 ? _mm512_permutexvar_epi32(nf4_pair_order(), pairs) : pairs);
    }
    return;
  }
  for (std::int64_t d = 0; d < x.cols; d += kStep) {
    __m512i words[16];
    load_pairs_by_depth(x.data + d, x.stride, 1, static_cast<int>(x.rows), x.cols - d, words);
    for (int p = 0; p < 16; ++p, out += 4 * x.rows) _mm512_mask_storeu_epi32(out, lanes, words[for_nf4 ? kNf4Pairs[p] : p]);
  }
}

constexpr std::int64_t kTileHeight = 16;

// A piece of the work: up to 16 weight rows at up to 256 depths. Two of them looked up, 16 KB, leave the first-level cache room for the codes: with
// 32 rows, whose two sums would not wait for each other, look-ups were a third slower.
struct TileChunk {
  static constexpr std::int64_t kDepth = kChunkSteps * kStep;
  std::int64_t row = 0, rows = 0, at = 0, depth = 0;

  TileChunk() = default;
  TileChunk(const Matrix& w, std::int64_t first, std::int64_t last, std::int64_t begin)
      : row(first), rows(last - first < kTileHeight ? last - first : kTileHeight), at(begin), depth(w.cols - begin < kDepth ? w.cols - begin : kDepth) {}
  bool any() const { return rows > 0; }
  bool in_place(const Matrix& w) const { return w.dtype == Dtype::bf16 && rows == kTileHeight && depth % kStep == 0; }
  TileChunk next(const Matrix& w, std::int64_t last) const {
    return at + depth < w.cols ? TileChunk(w, row, last, at + depth) : TileChunk(w, row + rows, last, 0);
  }
};

// The look-up of chunk after chunk as tiles of 16 rows of 64 bytes, some rows at a time: between the tile instructions of the chunk before it, which
// leave the vector units idle, and long before a tile load that would wait for these stores.
//   A tile's rows lie one after another, so the next tile's are asked for in a straight line meanwhile; a chunk's short pieces of many rows, which the
//   CPU does not see coming, are brought into the first-level cache while the chunk before it is looked up.
class LookUp {
 public:
  LookUp(const Matrix& w, std::int64_t first, std::int64_t last)
      : w_(w), last_(last), bits_(w.dtype == Dtype::nf4 ? 4 : 16), data_(static_cast<const std::uint8_t*>(w.data)), row_bytes_(bytes(w.cols)),
        far_(reinterpret_cast<std::uintptr_t>(data_ + first * row_bytes_) + static_cast<std::uintptr_t>(kTileHeight * row_bytes_)) {
    const TileChunk chunk(w, first, last, 0);
    for (std::int64_t row = 0; row < chunk.rows; ++row) ask<3>(reinterpret_cast<std::uintptr_t>(address(chunk) + row * row_bytes_), bytes(chunk.depth));
  }

  // tiles[step][16 rows][64 bytes]
  void begin(const TileChunk& chunk, std::uint8_t* tiles) {
    chunk_ = chunk, tiles_ = tiles, row_ = 0;
    in_place_ = chunk.in_place(w_);
    if (!chunk.any()) return;
    at_ = address(chunk);
    const TileChunk after = chunk.next(w_, last_);
    after_ = reinterpret_cast<std::uintptr_t>(data_) + static_cast<std::uintptr_t>(after.row * row_bytes_ + bytes(after.at));
    if (w_.dtype == Dtype::nf4) find_scales();
  }
  void some(std::int64_t rows) {
    const std::int64_t first = row_, last = chunk_.rows - first < rows ? chunk_.rows : first + rows;
    if (first >= last) return;
    row_ = last;
    if (w_.dtype == Dtype::nf4) return chunk_.depth == TileChunk::kDepth ? look_up<TileChunk::kDepth>(first, last) : look_up<0>(first, last);
    for (std::int64_t row = first; row < last; ++row) ask_for_row(row, bytes(chunk_.depth));
    if (!in_place_) copy(first, last);
  }
  void all() { some(kTileHeight); }

 private:
  std::int64_t bytes(std::int64_t values) const { return values * bits_ / 8; }
  const std::uint8_t* address(const TileChunk& chunk) const { return data_ + chunk.row * row_bytes_ + bytes(chunk.at); }

  // Into the caches from the first level (3) or the second (2) on.
  template <int locality>
  static void ask(std::uintptr_t at, std::int64_t count) {
#pragma GCC unroll 2
    for (std::int64_t byte = 0; byte < count; byte += 64) __builtin_prefetch(reinterpret_cast<const void*>(at + static_cast<std::uintptr_t>(byte)), 0, locality);
  }
  // Asking for what lies beyond the weight does no harm.
  void ask_for_row(std::int64_t row, std::int64_t count) {
    ask<2>(far_, count);
    ask<3>(after_ + static_cast<std::uintptr_t>(row * row_bytes_), count);
    far_ += static_cast<std::uintptr_t>(count);
  }
  // Of blocks of 64; those of a double-quantized weight are made 16 to a row at a time.
  void find_scales() {
    const std::int64_t row_blocks = w_.cols / 64, block = chunk_.at / 64, first = chunk_.row * row_blocks + block;
    if (w_.nf4.absmax != nullptr) {
      scale_ = w_.nf4.absmax + first, scale_stride_ = row_blocks;
      return;
    }
    if (block % kScaleRun == 0)
      for (std::int64_t row = 0; row < chunk_.rows; ++row)
        nested_scales(w_.nf4, first + row * row_blocks, row_blocks - block < kScaleRun ? row_blocks - block : kScaleRun, scales_[row]);
    scale_ = &scales_[0][block % kScaleRun], scale_stride_ = kScaleRun;
  }
  // Whole blocks, to a depth of `known`, or of the chunk's.
  template <std::int64_t known>
  void look_up(std::int64_t first, std::int64_t last) {
    const std::int64_t depth = known > 0 ? known : chunk_.depth, stride = row_bytes_, scale_stride = scale_stride_;
    const std::uint8_t* codes = at_ + first * stride;
    const float* scales = scale_ + first * scale_stride;
    std::uint8_t* out = tiles_ + 64 * first;
    std::uintptr_t far = far_, after = after_ + static_cast<std::uintptr_t>(first * stride);
    for (std::int64_t row = first; row < last; ++row, codes += stride, scales += scale_stride, out += 64) {
      ask<2>(far, depth / 2);
      ask<3>(after, depth / 2);
      far += static_cast<std::uintptr_t>(depth / 2), after += static_cast<std::uintptr_t>(stride);
      std::int64_t block = 0;
#pragma GCC unroll 2
      for (; block + 2 <= depth / 64; block += 2) {
        const __m512i table = code_words(scales[block], scales[block + 1]);
        std::uint8_t* steps = out + 2 * block * kHalfBytes;
        _mm512_store_si512(steps, nf4_run<0>(codes + 32 * block, table));
        _mm512_store_si512(steps + kHalfBytes, nf4_run<0>(codes + 32 * block + 16, table));
        _mm512_store_si512(steps + 2 * kHalfBytes, nf4_run<1>(codes + 32 * block + 32, table));
        _mm512_store_si512(steps + 3 * kHalfBytes, nf4_run<1>(codes + 32 * block + 48, table));
      }
      if (block < depth / 64) {
        const __m512i table = code_words(scales[block]);
        _mm512_store_si512(out + 2 * block * kHalfBytes, nf4_run(codes + 32 * block, table));
        _mm512_store_si512(out + (2 * block + 1) * kHalfBytes, nf4_run(codes + 32 * block + 16, table));
      }
    }
    far_ = far;
  }
  void copy(std::int64_t first, std::int64_t last) const {
    for (std::int64_t row = first; row < last; ++row) {
      const std::int64_t from = (chunk_.row + row) * w_.cols + chunk_.at;
      std::uint8_t* out = tiles_ + 64 * row;
      for (std::int64_t d = 0; d < chunk_.depth; d += kStep, out += kHalfBytes)
        _mm512_store_si512(out, stored_run(w_, from + d, chunk_.depth - d, _mm512_setzero_si512()));
    }
  }

  const Matrix& w_;
  std::int64_t last_, bits_;
  const std::uint8_t* data_;
  std::int64_t row_bytes_;
  std::uintptr_t far_, after_ = 0;  // only asked for
  TileChunk chunk_;
  std::uint8_t* tiles_ = nullptr;
  const std::uint8_t* at_ = nullptr;
  const float* scale_ = nullptr;
  std::int64_t row_ = 0, scale_stride_ = 0;
  bool in_place_ = false;
  alignas(64) float scales_[kTileHeight][kScaleRun];
};

// totals[16][16] ← a first pass' sums (+ y when accumulate) (+ bias[n + i]), of weight rows [n, n + count) and all rows of y.
inline void begin_totals(float* totals, std::int64_t n, int count, const float* bias, Rows y, bool accumulate) {
  if (!accumulate && bias == nullptr) return;
  for (int i = 0; i < count; ++i)
    for (std::int64_t t = 0; t < y.rows; ++t) {
      float value = totals[16 * i + t];
      if (accumulate) value = value + y.data[t * y.stride + n + i];
      if (bias != nullptr) value = value + bias[n + i];
      totals[16 * i + t] = value;
    }
}

// y[t, first … last) (+)= x[t] · w[n] + bias[n].
void few_rows(const Matrix& w, std::int64_t first, std::int64_t last, const void* packed_x, const float* bias, Rows y, bool accumulate) {
  static_assert(kDepthBlock % TileChunk::kDepth == 0);
  alignas(64) std::uint8_t looked_up[2][kChunkSteps * kHalfBytes];
  if ((last - first) % 16 != 0) __builtin_memset(looked_up, 0, sizeof looked_up);  // rows that the last tile lacks
  alignas(64) float sums[kTileHeight * 16], totals[kTileHeight * 16];
  const auto* x = static_cast<const std::uint8_t*>(packed_x);
  int turn = 0;
  TileChunk chunk(w, first, last, 0);
  LookUp coming(w, first, last);
  coming.begin(chunk, looked_up[turn]);
  coming.all();
  TileConfig config = kTileConfig;
  config.row_bytes[0] = config.row_bytes[6] = static_cast<std::uint16_t>(4 * y.rows);  // as many columns as x has rows
  const std::int64_t x_stride = 4 * y.rows, x_step = 16 * x_stride;
  ENGINE_TILE_CONFIGURE(&config);
  while (chunk.any()) {
    const TileChunk next = chunk.next(w, last);
    coming.begin(next, looked_up[turn ^ 1]);
    const bool direct = chunk.in_place(w);
    if (chunk.at % kDepthBlock == 0) ENGINE_TILE_ZERO(0);
    const std::uint8_t* tile = direct ? static_cast<const std::uint8_t*>(w.data) + 2 * (chunk.row * w.cols + chunk.at) : looked_up[turn];
    const std::int64_t row_bytes = direct ? 2 * w.cols : 64, step_bytes = direct ? 64 : kHalfBytes;
    const std::uint8_t* x_at = x + chunk.at / kStep * x_step;
    for (std::int64_t d = 0; d < chunk.depth; d += kStep, tile += step_bytes, x_at += x_step) {
      ENGINE_TILE_LOAD(6, x_at, x_stride);
      ENGINE_TILE_LOAD(4, tile, row_bytes);
      ENGINE_TILE_DOT(0, 4, 6);
      coming.some(kTileHeight / kChunkSteps);
    }
    coming.all();
    const std::int64_t end = chunk.at + chunk.depth;
    if (end == w.cols || end % kDepthBlock == 0) {
      // A pass ends. The first begins the totals, as a blocked product's first pass begins its result.
      float* to = chunk.at < kDepthBlock ? totals : sums;
      ENGINE_TILE_STORE(0, to, 64);
      if (to == totals)
        begin_totals(totals, chunk.row, static_cast<int>(chunk.rows), bias, y, accumulate);
      else
        for (std::int64_t i = 0; i < chunk.rows; ++i) store(totals + 16 * i, load(totals + 16 * i) + load(sums + 16 * i));
    }
    if (end == w.cols)
      for (std::int64_t i = 0; i < chunk.rows; ++i)
        for (std::int64_t t = 0; t < y.rows; ++t) y.data[t * y.stride + chunk.row + i] = totals[16 * i + t];
    chunk = next;
    turn ^= 1;
  }
  ENGINE_TILE_RELEASE();
}

constexpr FewRows kFewRowsKernel = {kFewRows, few_rows_bytes, pack_few_rows, few_rows};

}  // namespace amx
}  // namespace
}  // namespace engine
