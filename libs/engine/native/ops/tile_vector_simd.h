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
  for (std::int64_t d = 0; d < x.cols; d += kStep) {
    __m512i words[16];
    load_pairs_by_depth(x.data + d, x.stride, 1, static_cast<int>(x.rows), x.cols - d, words);
    for (int p = 0; p < 16; ++p, out += 4 * x.rows) _mm512_mask_storeu_epi32(out, lanes, words[p]);
  }
}

// A piece of the work: up to 16 weight rows at up to 256 depths.
struct TileChunk {
  static constexpr std::int64_t kDepth = kChunkSteps * kStep;
  std::int64_t row, rows, at, depth;

  TileChunk(const Matrix& w, std::int64_t first, std::int64_t last, std::int64_t begin)
      : row(first), rows(last - first < 16 ? last - first : 16), at(begin), depth(w.cols - begin < kDepth ? w.cols - begin : kDepth) {}
  bool any() const { return rows > 0; }
  TileChunk next(const Matrix& w, std::int64_t last) const { return at + depth < w.cols ? TileChunk(w, row, last, at + depth) : TileChunk(w, row + 16, last, 0); }
};

// Asks for a chunk's stored bytes: short pieces of many rows, which the CPU does not see coming.
inline void prefetch_chunk(const Matrix& w, const TileChunk& chunk) {
  const std::int64_t bits = w.dtype == Dtype::nf4 ? 4 : 16;
  for (std::int64_t row = chunk.row; row < chunk.row + chunk.rows; ++row) {
    const std::int64_t first = row * w.cols + chunk.at;
    const auto* bytes = static_cast<const std::uint8_t*>(w.data) + first * bits / 8;
    for (std::int64_t byte = 0; byte < chunk.depth * bits / 8; byte += 64) __builtin_prefetch(bytes + byte);
    if (w.dtype != Dtype::nf4) continue;
    if (w.nf4.absmax != nullptr)
      __builtin_prefetch(w.nf4.absmax + first / 64);
    else
      __builtin_prefetch(w.nf4.codes + first / 64);
  }
}

// A chunk as tiles of 16 rows of 64 bytes.
inline void look_up_chunk(const Matrix& w, const TileChunk& chunk, std::uint8_t* tiles) {
  for (std::int64_t i = 0; i < chunk.rows; ++i) {
    const std::int64_t first = (chunk.row + i) * w.cols + chunk.at;
    std::uint8_t* out = tiles + 64 * i;
    if (w.dtype == Dtype::nf4) {  // whole blocks of 64
      const auto* codes = static_cast<const std::uint8_t*>(w.data) + first / 2;
      for (std::int64_t block = 0; block < chunk.depth / 64; ++block, codes += 32, out += 2 * kHalfBytes) {
        const __m512i table = code_words(w.nf4, first / 64 + block);
        _mm512_store_si512(out, nf4_run(codes, table));
        _mm512_store_si512(out + kHalfBytes, nf4_run(codes + 16, table));
      }
      continue;
    }
    for (std::int64_t d = 0; d < chunk.depth; d += kStep, out += kHalfBytes) _mm512_store_si512(out, stored_run(w, first + d, chunk.depth - d, _mm512_setzero_si512()));
  }
}

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
  // A chunk is looked up while the one before it is multiplied: a tile load right after the stores it reads would wait for them. Rows that a
  // weight lacks stay zero.
  alignas(64) std::uint8_t looked_up[2][kChunkSteps * kHalfBytes] = {};
  alignas(64) float sums[16 * 16], totals[16 * 16];
  const auto* x = static_cast<const std::uint8_t*>(packed_x);
  const auto in_place = [&](const TileChunk& chunk) { return w.dtype == Dtype::bf16 && chunk.rows == 16 && chunk.depth % kStep == 0; };
  int turn = 0;
  TileChunk chunk(w, first, last, 0);
  if (chunk.any() && !in_place(chunk)) look_up_chunk(w, chunk, looked_up[turn]);
  TileConfig config = kTileConfig;
  config.row_bytes[0] = config.row_bytes[6] = static_cast<std::uint16_t>(4 * y.rows);  // as many columns as x has rows
  const std::int64_t x_step = 64 * y.rows;
  ENGINE_TILE_CONFIGURE(&config);
  while (chunk.any()) {
    const TileChunk next = chunk.next(w, last);
    if (next.any()) {
      prefetch_chunk(w, next.next(w, last));
      if (!in_place(next)) look_up_chunk(w, next, looked_up[turn ^ 1]);
    }
    if (chunk.at % kDepthBlock == 0) ENGINE_TILE_ZERO(0);
    const bool direct = in_place(chunk);
    const std::uint8_t* tile = direct ? static_cast<const std::uint8_t*>(w.data) + 2 * (chunk.row * w.cols + chunk.at) : looked_up[turn];
    const std::int64_t row_bytes = direct ? 2 * w.cols : 64, step_bytes = direct ? 64 : kHalfBytes;
    for (std::int64_t d = 0; d < chunk.depth; d += kStep, tile += step_bytes) {
      ENGINE_TILE_LOAD(4, tile, row_bytes);
      ENGINE_TILE_LOAD(6, x + (chunk.at + d) / kStep * x_step, 4 * y.rows);
      ENGINE_TILE_DOT(0, 4, 6);
    }
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
