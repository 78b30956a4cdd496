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
void pack_few_rows(ConstRows x, void* packed) {
  const auto lanes = static_cast<__mmask16>((1u << x.rows) - 1u);
  auto* out = static_cast<std::uint8_t*>(packed);
  if (x.rows == 1) {  // as it is
    for (std::int64_t d = 0; d < x.cols; d += kStep, out += 64) _mm512_storeu_si512(out, pairs_of_row(x.data + d, x.cols - d));
    return;
  }
  for (std::int64_t d = 0; d < x.cols; d += kStep) {
    __m512i words[16];
    load_pairs_by_depth(x.data + d, x.stride, 1, static_cast<int>(x.rows), x.cols - d, words);
    for (int p = 0; p < 16; ++p, out += 4 * x.rows) _mm512_mask_storeu_epi32(out, lanes, words[p]);
  }
}

// A piece of the work: up to 16 weight rows at up to 256 depths.
struct TileChunk {
  static constexpr std::int64_t kDepth = kChunkSteps * kStep;
  std::int64_t row = 0, rows = 0, at = 0, depth = 0;

  TileChunk() = default;
  TileChunk(const Matrix& w, std::int64_t first, std::int64_t last, std::int64_t begin)
      : row(first), rows(last - first < 16 ? last - first : 16), at(begin), depth(w.cols - begin < kDepth ? w.cols - begin : kDepth) {}
  bool any() const { return rows > 0; }
  bool in_place(const Matrix& w) const { return w.dtype == Dtype::bf16 && rows == 16 && depth % kStep == 0; }
  TileChunk next(const Matrix& w, std::int64_t last) const { return at + depth < w.cols ? TileChunk(w, row, last, at + depth) : TileChunk(w, row + 16, last, 0); }
};

// A weight's stored bytes, asked for ahead of their use. The rows of a tile lie one after another, so the next tile's are asked for in a straight
// line into the second-level cache; of the tile at hand, short pieces of many rows go to the first-level cache, which the CPU does not see coming.
class TileStream {
 public:
  TileStream(const Matrix& w, std::int64_t first, std::int64_t last)
      : data_(static_cast<const std::uint8_t*>(w.data)), bits_(w.dtype == Dtype::nf4 ? 4 : 16), cols_(w.cols), at_(data_ + bytes(first * cols_)),
        end_(data_ + bytes(last * cols_)) {
    if (w.dtype == Dtype::nf4) {
      const std::int64_t size = w.nf4.absmax != nullptr ? 4 : 1;
      const auto* scales = w.nf4.absmax != nullptr ? reinterpret_cast<const std::uint8_t*>(w.nf4.absmax) : w.nf4.codes;
      scale_at_ = scales + first * cols_ / 64 * size;
      scale_end_ = scales + last * cols_ / 64 * size;
      scale_bytes_ = 16 * cols_ / 64 * size;
    }
    line(at_, end_, bytes(16 * cols_));
    line(scale_at_, scale_end_, scale_bytes_);
  }
  // As many bytes further as a chunk has; at a tile's first, the scales of the next.
  void advance(const TileChunk& chunk) {
    line(at_, end_, bytes(chunk.rows * chunk.depth));
    if (chunk.at == 0) line(scale_at_, scale_end_, scale_bytes_);
  }
  std::int64_t bytes(std::int64_t values) const { return values * bits_ / 8; }
  std::int64_t row_bytes() const { return bytes(cols_); }
  const std::uint8_t* address(const TileChunk& chunk) const { return data_ + bytes(chunk.row * cols_ + chunk.at); }

 private:
  static void line(const std::uint8_t*& at, const std::uint8_t* end, std::int64_t count) {
    for (const std::uint8_t* stop = end - at < count ? end : at + count; at < stop; at += 64) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
  }

  const std::uint8_t* data_;
  std::int64_t bits_, cols_;
  const std::uint8_t *at_, *end_, *scale_at_ = nullptr, *scale_end_ = nullptr;
  std::int64_t scale_bytes_ = 0;
};

// The look-up of a chunk as tiles of 16 rows of 64 bytes, some rows at a time: between the tile instructions of the chunk before it, which leave the
// vector units idle, and long before a tile load that would wait for these stores.
class LookUp {
 public:
  LookUp(const Matrix& w, std::int64_t last, TileStream& stream) : w_(w), last_(last), stream_(stream) {}

  void begin(const TileChunk& chunk, std::uint8_t* tiles) {
    chunk_ = chunk, tiles_ = tiles, row_ = 0;
    in_place_ = chunk.in_place(w_);
    if (!chunk.any()) return;
    stream_.advance(chunk);
    const TileChunk after = chunk.next(w_, last_);
    after_rows_ = after.rows, after_bytes_ = stream_.bytes(after.depth);
    at_ = stream_.address(chunk), after_ = stream_.address(after);
  }
  void some(std::int64_t rows) {
    for (; rows > 0 && row_ < chunk_.rows; --rows, ++row_, at_ += stream_.row_bytes(), after_ += stream_.row_bytes()) {
      if (row_ < after_rows_)
        for (std::int64_t byte = 0; byte < after_bytes_; byte += 64) _mm_prefetch(reinterpret_cast<const char*>(after_ + byte), _MM_HINT_T0);
      if (in_place_) continue;
      if (w_.dtype == Dtype::nf4)
        look_up_codes(tiles_ + 64 * row_);
      else
        copy(tiles_ + 64 * row_);
    }
  }
  void all() { some(chunk_.rows); }

 private:
  void copy(std::uint8_t* out) const {
    const std::int64_t first = (chunk_.row + row_) * w_.cols + chunk_.at;
    for (std::int64_t d = 0; d < chunk_.depth; d += kStep, out += kHalfBytes)
      _mm512_store_si512(out, stored_run(w_, first + d, chunk_.depth - d, _mm512_setzero_si512()));
  }
  // Whole blocks of 64, whose scales are made 16 at a time.
  void look_up_codes(std::uint8_t* out) {
    const std::int64_t row_blocks = w_.cols / 64, block = chunk_.at / 64, first = (chunk_.row + row_) * row_blocks + block;
    const float* scales;
    if (w_.nf4.absmax != nullptr) {
      scales = w_.nf4.absmax + first;
    } else {
      const std::int64_t left = row_blocks - block;
      if (block % kScaleRun == 0) nested_scales(w_.nf4, first, left < kScaleRun ? left : kScaleRun, scales_[row_]);
      scales = scales_[row_] + block % kScaleRun;
    }
    const std::uint8_t* codes = at_;
    for (const std::uint8_t* end = codes + chunk_.depth / 2; codes < end; codes += 32, out += 2 * kHalfBytes) {
      const __m512i table = code_words(*scales++);
      _mm512_store_si512(out, nf4_run(codes, table));
      _mm512_store_si512(out + kHalfBytes, nf4_run(codes + 16, table));
    }
  }

  const Matrix& w_;
  std::int64_t last_;
  TileStream& stream_;
  TileChunk chunk_{};
  std::uint8_t* tiles_ = nullptr;
  std::int64_t row_ = 0, after_rows_ = 0, after_bytes_ = 0;
  const std::uint8_t *at_ = nullptr, *after_ = nullptr;
  bool in_place_ = false;
  alignas(64) float scales_[16][kScaleRun];
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
  // Rows that a weight lacks stay zero.
  alignas(64) std::uint8_t looked_up[2][kChunkSteps * kHalfBytes] = {};
  alignas(64) float sums[16 * 16], totals[16 * 16];
  const auto* x = static_cast<const std::uint8_t*>(packed_x);
  int turn = 0;
  TileStream stream(w, first, last);
  LookUp coming(w, last, stream);
  TileChunk chunk(w, first, last, 0);
  coming.begin(chunk, looked_up[turn]);
  coming.all();
  TileConfig config = kTileConfig;
  config.row_bytes[0] = config.row_bytes[6] = static_cast<std::uint16_t>(4 * y.rows);  // as many columns as x has rows
  const std::int64_t x_step = 64 * y.rows;
  ENGINE_TILE_CONFIGURE(&config);
  while (chunk.any()) {
    const TileChunk next = chunk.next(w, last);
    coming.begin(next, looked_up[turn ^ 1]);
    if (chunk.at % kDepthBlock == 0) ENGINE_TILE_ZERO(0);
    const bool direct = chunk.in_place(w);
    const std::uint8_t* tile = direct ? static_cast<const std::uint8_t*>(w.data) + 2 * (chunk.row * w.cols + chunk.at) : looked_up[turn];
    const std::int64_t row_bytes = direct ? 2 * w.cols : 64, step_bytes = direct ? 64 : kHalfBytes;
    for (std::int64_t d = 0; d < chunk.depth; d += kStep, tile += step_bytes) {
      ENGINE_TILE_LOAD(4, tile, row_bytes);
      ENGINE_TILE_LOAD(6, x + (chunk.at + d) / kStep * x_step, 4 * y.rows);
      ENGINE_TILE_DOT(0, 4, 6);
      coming.some(16 / kChunkSteps);
    }
    coming.all();
    const std::int64_t end = chunk.at + chunk.depth;
    if (end == w.cols || end % kDepthBlock == 0) {
      // A pass ends. The first begins the totals, as a blocked product's first pass begins its result.
      if (chunk.at < kDepthBlock) {
        ENGINE_TILE_STORE(0, totals, 64);
        begin_totals(totals, chunk.row, static_cast<int>(chunk.rows), bias, y, accumulate);
      } else {
        ENGINE_TILE_STORE(0, sums, 64);
        for (std::int64_t i = 0; i < chunk.rows; ++i) store(totals + 16 * i, load(totals + 16 * i) + load(sums + 16 * i));
      }
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
