// paged_attention_decode.cu: one row of queries over its sequence's pages. A row's keys are divided into at most 32 parts, by their number alone; a thread
// block takes one part of one kv head for all query heads that share it, a warp a page of 16 tokens at a time. (Flash-decoding, arXiv:2311.01282)
//   The query heads are the 16 rows of mma.m16n8k16, so that each key and value is read once: 4 · head_dim bytes a token and kv head over memory bandwidth
//   is the floor. While a warp multiplies a page, its next one arrives.
//   The last block of a row and kv head to end joins the parts, in their order.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/attention_launch.h"
#include "cuda/ops/attention_tile.cuh"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace attention {
namespace {

constexpr int kPage = static_cast<int>(kPageTokens), kHeads = 16;  // query heads of a block
constexpr int kMostParts = 32, kLeastPart = 128;                 // parts of a row; tokens of one
static_assert(kPage == 16, "a page is the 16 tokens of one product with the values");

// Tokens of a part when a row sees `tokens`: a multiple of a round of all warps.
__host__ ENGINE_DEVICE int part_tokens(int tokens) {
  constexpr int round = kWarps * kPage;
  const int even = (tokens + kMostParts - 1) / kMostParts;
  return even <= kLeastPart ? kLeastPart : (even + round - 1) / round * round;
}

struct DecodeArguments {
  const bf16* q;
  std::int64_t q_stride;
  bf16* out;
  std::int64_t out_stride;
  PagedRows rows;
  const bf16* pages;
  int tokens;                 // rows
  int heads, kv_heads, group, blocks_of_heads;  // blocks_of_heads: of kHeads, in a group
  int window, most_parts;
  float scale, softcap;
  unsigned* arrivals;         // [rows][kv_heads][blocks_of_heads], zero before and after
  float* sums;                // [rows][heads][most_parts][D], relative to 2^top
  float* weights;             // [rows][heads][most_parts][2]: top and total
};

template <int D>
struct Decode {
  static constexpr int kStage = 2 * kPage * D;  // a page's keys and values
  static constexpr std::int64_t kSharedBytes = sizeof(bf16) * (kHeads * D + 2 * kWarps * kStage);
  static_assert(sizeof(float) * kHeads * D <= sizeof(bf16) * 2 * kStage, "a warp's sums fit where its pages were");
};

// One warp: begins to copy a page's rows `from` [16][D] into a tile; rows from `valid` on become zeros.
template <int D>
ENGINE_DEVICE void load_page(bf16* tile, const bf16* from, int valid) {
  constexpr int chunks = D / 8;
#pragma unroll
  for (int i = static_cast<int>(lane_id()); i < kPage * chunks; i += kWarp) {
    const int row = i / chunks, chunk = i % chunks;
    copy_async16(tile + chunk_at<D>(row, chunk), from + (row < valid ? row * D + chunk * 8 : 0), row < valid ? 16 : 0);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads) decode_kernel(DecodeArguments in) {
  allow_next();
  wait_for_previous();
  const int lane = static_cast<int>(lane_id()), thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, g = lane / 4, t = lane % 4;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* stages = queries + kHeads * D + warp * 2 * Decode<D>::kStage;
  SHARED_ARRAY(float, tops, kWarps * kHeads);
  SHARED_ARRAY(float, totals, kWarps * kHeads);
  SHARED_ARRAY(unsigned, arrived, 1);
  const int lines = in.kv_heads * in.blocks_of_heads, items = in.most_parts * in.tokens * lines;

  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {  // parts that are nobody's come last
    const int part = item / (in.tokens * lines), row = item / lines % in.tokens, line = item % lines;
    const int kv_head = line / in.blocks_of_heads, first_head = line % in.blocks_of_heads * kHeads;  // within the group
    const int heads = lesser(kHeads, in.group - first_head), head = kv_head * in.group + first_head;
    const int sequence = in.rows.sequence[row], position = in.rows.position[row];
    bf16* out = in.out + row * in.out_stride + std::int64_t{head} * D;
    if (sequence < 0) {
      if (part == 0)
        for (int i = thread; i < heads * D; i += kThreads) out[i] = bf16{0};
      continue;
    }
    const int begin = first_key_block(position, 0, in.window, kPage), size = part_tokens(position + 1 - begin);
    const int first = begin + part * size, end = lesser(first + size, position + 1), parts = (position + 1 - begin + size - 1) / size;
    if (first >= end) continue;

    const std::int32_t* table = in.rows.tables + sequence * in.rows.table_stride;
    const std::int64_t page_elements = std::int64_t{in.kv_heads} * 2 * kPage * D;
    const auto bring = [&](int key, int stage) {
      if (key < end) {
        const bf16* page = in.pages + table[key / kPage] * page_elements + std::int64_t{kv_head} * 2 * kPage * D;
        load_page<D>(stages + stage * Decode<D>::kStage, page, end - key);
        load_page<D>(stages + stage * Decode<D>::kStage + kPage * D, page + kPage * D, end - key);
      }
      copy_async_commit();
    };
    load_tile<D, kHeads>(queries, in.q + row * in.q_stride + std::int64_t{head} * D, D, 0, heads);
    bring(first + warp * kPage, 0);
    bring(first + (warp + kWarps) * kPage, 1);
    copy_async_wait<1>();
    __syncthreads();  // the queries are there

    float o[D / 8][4] = {}, most[2] = {-infinity(), -infinity()}, sum[2] = {};
    int stage = 0;
    for (int key = first + warp * kPage; key < end; key += kWarps * kPage, stage ^= 1) {
      copy_async_wait<1>();
      sync_warp();
      const bf16* keys = stages + stage * Decode<D>::kStage;
      const bf16* values = keys + kPage * D;
      float s[2][4] = {};
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        std::uint32_t a[4], b[4];
        load_a<D>(a, queries, 0, step);
        load_b_rows<D>(b, keys, 0, step);
        multiply_two(s[0], s[1], a, b);
      }
      const bool masked = key + kPage > end || (in.window > 0 && position - key >= in.window);
      const float scale = in.softcap > 0 ? in.scale / in.softcap : in.scale * kLog2e;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float x = s[n][i] * scale;
          if (in.softcap > 0) x = in.softcap * kLog2e * tanhf(x);
          if (masked && !sees(position, key + 8 * n + 2 * t + i % 2, in.window)) x = -infinity();
          s[n][i] = x;
        }
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // heads g and g + 8
        float top = fmaxf(most[half], fmaxf(fmaxf(s[0][2 * half], s[0][2 * half + 1]), fmaxf(s[1][2 * half], s[1][2 * half + 1])));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float base = top == -infinity() ? 0.0f : top, shrink = exp2_fast(most[half] - base);
        most[half] = top;
        float added = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[n][i] = exp2_fast(s[n][i] - base);
            added += s[n][i];
          }
        sum[half] = sum[half] * shrink + added;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[n][2 * half] *= shrink;
          o[n][2 * half + 1] *= shrink;
        }
      }
      std::uint32_t p[4];
      to_a(p, s[0], s[1]);
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        std::uint32_t b[4];
        load_b_columns<D>(b, values, 0, n);
        multiply_two(o[2 * n], o[2 * n + 1], p, b);
      }
      sync_warp();  // the page has been read
      bring(key + 2 * kWarps * kPage, stage);
    }

    // The warps' sums, relative to the largest top of all.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[half];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      if (t == 0) {
        tops[warp * kHeads + g + 8 * half] = most[half];
        totals[warp * kHeads + g + 8 * half] = total;
      }
    }
    __syncthreads();
    float* mine = reinterpret_cast<float*>(stages);  // [kHeads][D]; all copies have arrived and been read
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = g + 8 * half;
      float top = -infinity();
      for (int w = 0; w < kWarps; ++w) top = fmaxf(top, tops[w * kHeads + r]);
      const float factor = most[half] == -infinity() ? 0.0f : exp2_fast(most[half] - top);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        mine[r * D + 8 * n + 2 * t] = o[n][2 * half] * factor;
        mine[r * D + 8 * n + 2 * t + 1] = o[n][2 * half + 1] * factor;
      }
    }
    __syncthreads();
    const float* all = reinterpret_cast<const float*>(queries + kHeads * D);
    constexpr int kBetween = Decode<D>::kStage;  // floats from one warp's sums to the next's
    const auto joined = [&](int r, float& top) {  // total of head r, and its top
      top = -infinity();
      for (int w = 0; w < kWarps; ++w) top = fmaxf(top, tops[w * kHeads + r]);
      float total = 0;
      for (int w = 0; w < kWarps; ++w)
        if (tops[w * kHeads + r] != -infinity()) total += totals[w * kHeads + r] * exp2_fast(tops[w * kHeads + r] - top);
      return total;
    };
    for (int i = thread; i < heads * D; i += kThreads) {
      const int r = i / D, d = i % D;
      float value = 0, top;
      for (int w = 0; w < kWarps; ++w) value += all[w * kBetween + i];
      const float total = joined(r, top);
      if (parts == 1) {
        out[i] = narrow(value / total);
        continue;
      }
      const std::int64_t at = (std::int64_t{row} * in.heads + head + r) * in.most_parts + part;
      in.sums[at * D + d] = value;
      if (d == 0) {
        in.weights[2 * at] = top;
        in.weights[2 * at + 1] = total;
      }
    }
    __syncthreads();
    if (parts == 1) continue;
    if (thread == 0) *arrived = count_arrival(in.arrivals + row * lines + line);
    __syncthreads();
    if (static_cast<int>(*arrived) != parts - 1) continue;  // not the last
    acquire();
    if (thread == 0) in.arrivals[row * lines + line] = 0;
    for (int i = thread; i < heads * D; i += kThreads) {
      const int r = i / D, d = i % D;
      const std::int64_t at = (std::int64_t{row} * in.heads + head + r) * in.most_parts;
      float top = -infinity();
      for (int j = 0; j < parts; ++j) top = fmaxf(top, in.weights[2 * (at + j)]);
      float value = 0, total = 0;
      for (int j = 0; j < parts; ++j) {
        const float factor = exp2_fast(in.weights[2 * (at + j)] - top);
        value = fmaf(in.sums[(at + j) * D + d], factor, value);
        total = fmaf(in.weights[2 * (at + j) + 1], factor, total);
      }
      out[i] = narrow(value / total);
    }
    __syncthreads();  // `arrived` is read
  }
}

std::int64_t lines_of(const AttentionShape& shape) { return shape.kv_heads * ceil_div(shape.heads / shape.kv_heads, kHeads); }

std::int64_t parts_of(std::int64_t most_tokens) { return std::max<std::int64_t>(1, std::min<std::int64_t>(kMostParts, ceil_div(most_tokens + kPage, kLeastPart))); }

// Counters of arrivals. They begin the workspace, and there are as many whatever a call's rows, so that no call's sums lie where another counts.
constexpr std::int64_t kMostArrivals = 16384;
constexpr std::int64_t kArrivalBytes = kMostArrivals * static_cast<std::int64_t>(sizeof(unsigned));

}  // namespace
}  // namespace attention

std::int64_t paged_attention_workspace(const AttentionShape& shape, std::int64_t rows, std::int64_t most_tokens) {
  const std::int64_t parts = rows * shape.heads * attention::parts_of(most_tokens);
  return attention::kArrivalBytes + 4 * parts * (shape.head_dim + 2);
}

void paged_attention_decode(const AttentionShape& shape, View<const bf16> q, const PagedRows& rows, const KvPages& pages, View<bf16> out,
                            std::int64_t most_tokens, void* workspace, cudaStream_t stream) {
  using namespace attention;
  check_paged(shape, q, pages, out);
  require(most_tokens >= 1 && most_tokens < std::int64_t{1} << 30, "attention over ", most_tokens, " tokens");
  if (q.rows == 0) return;
  const std::int64_t group = shape.heads / shape.kv_heads, parts = parts_of(most_tokens);
  require(q.rows * lines_of(shape) <= kMostArrivals, q.rows, " rows of ", lines_of(shape), " groups of heads; a call takes ", kMostArrivals, " together");
  auto* sums = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + kArrivalBytes);
  const DecodeArguments in{.q = q.data, .q_stride = q.stride, .out = out.data, .out_stride = out.stride, .rows = rows, .pages = pages.data,
                           .tokens = static_cast<int>(q.rows), .heads = static_cast<int>(shape.heads), .kv_heads = static_cast<int>(shape.kv_heads),
                           .group = static_cast<int>(group), .blocks_of_heads = static_cast<int>(ceil_div(group, kHeads)), .window = static_cast<int>(shape.window),
                           .most_parts = static_cast<int>(parts), .scale = shape.scale, .softcap = shape.softcap, .arrivals = static_cast<unsigned*>(workspace),
                           .sums = sums, .weights = sums + q.rows * shape.heads * parts * shape.head_dim};
  const std::int64_t items = parts * q.rows * lines_of(shape);
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) {
    launch_chained(stream, blocks(std::min<std::int64_t>(items, 3 * multiprocessors())), kThreads, Decode<D>::kSharedBytes, decode_kernel<D>, in);
  });
}

}  // namespace engine::cuda
