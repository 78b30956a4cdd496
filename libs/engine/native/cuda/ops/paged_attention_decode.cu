// paged_attention_decode.cu: one row of queries over its sequence's pages. A row's keys are divided into at most 64 parts, by their number alone; a thread
// block takes parts of one kv head for all query heads that share it, a warp one page of 16 tokens at a time. (Flash-decoding, arXiv:2311.01282)
//   Each key and value is read once, into registers (attention_page.cuh): 4 · head_dim bytes a token and kv head over memory bandwidth is the floor. A
//   warp's next page arrives while it multiplies one and while a part's sums are put together: 8 KB a warp at head_dim 128, 128 KB a multiprocessor.
//   Few rows are divided among as many blocks as there are parts; of many rows a block goes through several parts, so that it has a next page. The last
//   block of a row and kv head to end joins the parts, in their order: which block made them does not show in the result.
//
// What is read before wait_for_previous(), that is while kernels of this step still run, must have been written before any kernel of this step began:
//   - sequence, position, tables, and what qkv_post has from the model: the host copies them to the device before the step's first kernel. A copy is no
//     kernel, so nothing is chained to it: that kernel begins when the copy has ended, and a chained kernel begins when all blocks of the one before it have
//     begun. In a captured step the copy is a node of the graph, and a replay begins when what was given to the stream before it has ended.
//   - keys and values of tokens before position, when the caller says that each row is its sequence's only one in the step (rows.apart): steps that wrote
//     them ended before this step's copy began, as did copies of pages. Kernels of this step write keys and values of the rows' own positions only: other
//     slots, which are read after the wait, or not at all when this kernel makes them.
//   Nothing is written before the wait. Blocks without a part leave without it; the block of each row's first part waits, so this kernel never ends before
//   what ran before it.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/attention_launch.h"
#include "cuda/ops/attention_page.cuh"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace attention {
namespace {

constexpr int kDecodeWarps = 8, kDecodeThreads = kDecodeWarps * kWarp;
constexpr int kRound = kDecodeWarps * kPage;  // tokens that a block has at once
constexpr int kMostParts = 64;                // of a row
static_assert(kMostParts == 2 * kWarp);
constexpr int kBlockTokens = 1024;            // that a block goes through at most, or one part: a long row among short ones is not left to few blocks

// Tokens of a part when a row sees `tokens`, divided into `most` at most: whole rounds.
__host__ ENGINE_DEVICE int part_tokens(int tokens, int most) {
  const int even = (tokens + most - 1) / most;
  return (even + kRound - 1) / kRound * kRound;
}

// Parts that a block goes through: at most `most`, all blocks about as many.
__host__ ENGINE_DEVICE int parts_each(int parts, int size, int most) {
  const int fitting = kBlockTokens / size < most ? kBlockTokens / size : most, limit = fitting < 1 ? 1 : fitting, blocks = (parts + limit - 1) / limit;
  return (parts + blocks - 1) / blocks;
}

struct DecodeArguments {
  const bf16* q;              // [rows][q_stride]: heads of queries; raw, and followed by those of keys and values, when they are to be finished here
  std::int64_t q_stride;
  bf16* out;
  std::int64_t out_stride;
  PagedRows rows;
  bf16* pages;
  int heads, kv_heads, group, blocks_of_heads;  // blocks_of_heads: of 8·N, in a group
  int window, most_parts, most_each;  // most_each: parts of a block
  float scale, softcap;
  bool finish;
  QkvPost post;
  unsigned* arrivals;         // [rows][kv_heads][blocks_of_heads], zero before and after
  float* sums;                // [rows][heads][most_parts][D], relative to 2^top
  float* weights;             // [rows][heads][most_parts][2]: top and total
};

template <int D, int N>
struct Decode {
  static constexpr int kRows = kHeads * N;       // query heads of a block
  static constexpr int kJobs = (kRows + 2 + kDecodeWarps - 1) / kDecodeWarps;  // heads that a warp finishes, the new key and value among them
  static constexpr int kSumStride = D + 4;
  static constexpr std::int64_t kHeadBytes = sizeof(bf16) * (kRows + 2) * Queries<D>::kStride;  // queries, new key, new value
  static constexpr std::int64_t kSumBytes = sizeof(float) * kDecodeWarps * kRows * kSumStride;
  static constexpr std::int64_t kSharedBytes = kHeadBytes + kSumBytes;
  static constexpr int kBlocksAtOnce = D * N <= 128 ? 2 : 1;  // on a multiprocessor: what registers allow
};

// What a warp needs of the model to finish one head. Lane l has columns l + 32j of its first half and those half a head further, as in qkv_post_paged.
template <int D>
struct HeadConstants {
  static constexpr int kPairs = (D / 2 + kWarp - 1) / kWarp;
  float bias[kPairs][2], weight[kPairs][2];

  static ENGINE_DEVICE int column(int j) { return static_cast<int>(lane_id()) + kWarp * j; }

  ENGINE_DEVICE void load(const float* bias_of, const float* norm, float offset) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = column(j) + i * (D / 2);
        const bool there = column(j) < D / 2;
        bias[j][i] = there && bias_of != nullptr ? bias_of[d] : 0.0f;
        weight[j][i] = there && norm != nullptr ? norm[d] + offset : 0.0f;
      }
  }
};
template <int D>
struct Angles {
  float cos[HeadConstants<D>::kPairs], sin[HeadConstants<D>::kPairs];

  ENGINE_DEVICE void load(const QkvPost& post, int position) {
#pragma unroll
    for (int j = 0; j < HeadConstants<D>::kPairs; ++j) {
      const int d = HeadConstants<D>::column(j);
      const bool there = post.rotary_dim > 0 && d < D / 2;
      const std::int64_t at = std::int64_t{position} * (D / 2) + d;
      cos[j] = there ? post.cos[at] : 1.0f;
      sin[j] = there ? post.sin[at] : 0.0f;
    }
  }
};

// One head as qkv_post_paged finishes it, to the bit.
template <int D>
struct Head {
  static constexpr int kPairs = HeadConstants<D>::kPairs;
  float x[kPairs][2];

  ENGINE_DEVICE void load(const bf16* raw) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = HeadConstants<D>::column(j);
        x[j][i] = d < D / 2 ? widen(raw[d + i * (D / 2)]) : 0.0f;
      }
  }

  // (warp)
  ENGINE_DEVICE void finish(const HeadConstants<D>& constants, bool normalized, float eps, bool turn, const Angles<D>& angles) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[j][i] += constants.bias[j][i];
        squares = fmaf(x[j][i], x[j][i], squares);
      }
    if (normalized) {
      const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(D) + eps);
#pragma unroll
      for (int j = 0; j < kPairs; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) x[j][i] *= inverse * constants.weight[j][i];
    }
    if (!turn) return;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float low = x[j][0], high = x[j][1];
      x[j][0] = low * angles.cos[j] - high * angles.sin[j];
      x[j][1] = high * angles.cos[j] + low * angles.sin[j];
    }
  }

  ENGINE_DEVICE void store(bf16* to) const {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int d = HeadConstants<D>::column(j);
      if (d >= D / 2) continue;
      to[d] = narrow(x[j][0]);
      to[d + D / 2] = narrow(x[j][1]);
    }
  }
};

ENGINE_DEVICE void store4(bf16* to, const float (&x)[4], float factor) {
  *reinterpret_cast<uint2*>(to) = {pack(x[0] * factor, x[1] * factor), pack(x[2] * factor, x[3] * factor)};
}

// The parts of heads 0 … heads - 1, whose sums and weights begin at these addresses, joined in their order.
template <int D>
ENGINE_DEVICE void join_parts(const float* sums, const float* weights, int most_parts, int parts, int heads, bf16* out) {
  const int lane = static_cast<int>(lane_id());
  constexpr int ahead = 8;  // parts whose sums are asked for at once
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < heads; r += kDecodeWarps) {
    const float* from = sums + std::int64_t{r} * most_parts * D;
    float x[ahead][4];
    const auto bring = [&](int first, int d) {
#pragma unroll
      for (int j = 0; j < ahead; ++j) load_floats4(from + std::int64_t{lesser(first + j, parts - 1)} * D + lesser(d, D - 4), x[j]);
    };
    bring(0, 4 * lane);
    float factors[kMostParts / kWarp], totals[kMostParts / kWarp];  // of parts lane, lane + 32
    float top = -infinity(), total = 0;
#pragma unroll
    for (int i = 0; i < kMostParts / kWarp; ++i) {
      const int j = lane + i * kWarp;
      const bool there = j < parts;
      factors[i] = there ? weights[2 * (std::int64_t{r} * most_parts + j)] : -infinity();
      totals[i] = there ? weights[2 * (std::int64_t{r} * most_parts + j) + 1] : 0.0f;
      top = fmaxf(top, factors[i]);
    }
    top = warp_max(top);
#pragma unroll
    for (int i = 0; i < kMostParts / kWarp; ++i) {
      factors[i] = exp2_fast(factors[i] - top);  // 0 for parts that are not there
      total = fmaf(totals[i], factors[i], total);
    }
    const float inverse = 1.0f / warp_sum(total);
    for (int d = 4 * lane; d - 4 * lane < D; d += 4 * kWarp) {
      float value[4] = {};
      for (int first = 0; first < parts; first += ahead) {
        if (first > 0 || d > 4 * lane) bring(first, d);
        const float some = first < kWarp ? factors[0] : factors[1];
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
          const float factor = shuffle(some, static_cast<unsigned>(first % kWarp + j));
#pragma unroll
          for (int c = 0; c < 4; ++c) value[c] = fmaf(x[j][c], factor, value[c]);
        }
      }
      if (d < D) store4(out + r * D + d, value, inverse);
    }
  }
}

// Grid: kv heads · blocks of heads, rows, blocks of parts: those without a part come last.
template <int D, int N>
__global__ void __launch_bounds__(kDecodeThreads, (Decode<D, N>::kBlocksAtOnce)) decode_kernel(DecodeArguments in) {
  using Here = Decode<D, N>;
  allow_next();
  const int lane = static_cast<int>(lane_id()), thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, g = lane / 4, t = lane % 4;
  const int line = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y), turn = static_cast<int>(blockIdx.z);
  const int kv_head = line / in.blocks_of_heads, first_head = line % in.blocks_of_heads * Here::kRows;  // within the group
  const int heads = lesser(Here::kRows, in.group - first_head), head = kv_head * in.group + first_head;
  bf16* out = in.out + row * in.out_stride + std::int64_t{head} * D;
  const int sequence = in.rows.sequence[row], position = in.rows.position[row];
  if (sequence < 0) {
    if (turn > 0) return;
    wait_for_previous();
    for (int i = thread; i < heads * D; i += kDecodeThreads) out[i] = bf16{0};
    return;
  }
  const int begin = first_key_block(position, 0, in.window, kPage), size = part_tokens(position + 1 - begin, in.most_parts);
  const int parts = (position + 1 - begin + size - 1) / size, each = parts_each(parts, size, in.most_each);
  const int first_part = turn * each, last_part = lesser(first_part + each, parts);  // this block's
  if (first_part >= parts) return;
  const int first = begin + first_part * size, end = lesser(begin + last_part * size, position + 1);
  const bool newest = end == position + 1;  // this block has the newest token
  if (!in.rows.apart) wait_for_previous();

  // The warp's page, and its next one's number.
  const std::int32_t* table = in.rows.tables + sequence * in.rows.table_stride;
  const std::int64_t page_elements = std::int64_t{in.kv_heads} * 2 * kPage * D;
  bf16* pool = in.pages + std::int64_t{kv_head} * 2 * kPage * D;
  int key = first + warp * kPage;
  const auto page_number = [&](int of) { return of < end ? std::int64_t{table[of / kPage]} : 0; };
  const bf16* at = pool + page_number(key) * page_elements;
  std::int64_t next = page_number(key + kRound);
  const bool mine_is_newest = key <= position && position < key + kPage;
  const bool late = in.rows.apart && !in.finish && mine_is_newest;  // the kernel before this one may have written it
  Page<D> page;
  if (key < end && !late) {
    page.load_keys(at);
    page.load_values(at + kPage * D);
  }

  // Heads: a warp brings one, or some, of the queries; when they are finished here, then of the new key and value too.
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* new_key = queries + Here::kRows * Queries<D>::kStride;
  bf16* new_value = new_key + Queries<D>::kStride;
  for (int i = heads * Queries<D>::kStride + 2 * thread; i < Here::kRows * Queries<D>::kStride; i += 2 * kDecodeThreads)
    *reinterpret_cast<std::uint32_t*>(queries + i) = 0;  // heads that are not there
  const int jobs = heads + (in.finish && newest ? 2 : 0);
  const auto columns = [&](int job) { return std::int64_t{job < heads ? head + job : in.heads + kv_head + (job - heads) * in.kv_heads} * D; };
  HeadConstants<D> constants[Here::kJobs];
  Angles<D> angles;
#pragma unroll
  for (int i = 0; i < Here::kJobs; ++i) {
    const int job = warp + i * kDecodeWarps;
    const bool there = in.finish && job < jobs;
    constants[i].load(there && in.post.bias != nullptr ? in.post.bias + columns(job) : nullptr,
                      there ? (job < heads ? in.post.q_norm : job == heads ? in.post.k_norm : nullptr) : nullptr, in.post.offset);
  }
  angles.load(in.post, position);
  bf16* slot = pool + (in.finish && newest ? std::int64_t{table[position / kPage]} * page_elements + position % kPage * D : 0);
  if (in.rows.apart) wait_for_previous();
  Head<D> brought[Here::kJobs];
#pragma unroll
  for (int i = 0; i < Here::kJobs; ++i)
    if (warp + i * kDecodeWarps < jobs) brought[i].load(in.q + row * in.q_stride + columns(warp + i * kDecodeWarps));
  if (late) {
    page.load_keys(at);
    page.load_values(at + kPage * D);
  }
#pragma unroll
  for (int i = 0; i < Here::kJobs; ++i) {
    const int job = warp + i * kDecodeWarps;
    if (job >= jobs) continue;
    const bool value = job == heads + 1;
    brought[i].finish(constants[i], !value && in.post.q_norm != nullptr, in.post.eps, !value && in.post.rotary_dim > 0, angles);
    brought[i].store(job < heads ? queries + job * Queries<D>::kStride : value ? new_value : new_key);
    if (job >= heads && first_head == 0) brought[i].store(value ? slot + kPage * D : slot);
  }
  __syncthreads();

  SHARED_ARRAY(float, tops, kDecodeWarps * Here::kRows);
  SHARED_ARRAY(float, totals, kDecodeWarps * Here::kRows);
  SHARED_ARRAY(unsigned, arrived, 1);
  auto* all = reinterpret_cast<float*>(static_cast<unsigned char*>(block_shared()) + Here::kHeadBytes);
  const std::int64_t result = (std::int64_t{row} * in.heads + head) * in.most_parts;
  for (int part = first_part; part < last_part; ++part) {
    const int part_first = begin + part * size, part_end = lesser(part_first + size, end);
    float o[Page<D>::kBlocks][N][4] = {}, most[2] = {-infinity(), -infinity()}, sum[2] = {};
    for (; key < part_end; key += kRound) {
      if (key + kPage > position) {  // the newest page
        if (in.finish) page.replace(position % kPage, new_key, new_value);
        page.clear_values(position - key + 1);
      }
      const bool more = key + kRound < end;
      float s[2][4];
      page.template scores<N>(queries, s);
      at = pool + next * page_elements;
      if (more) {
        page.load_keys(at);
        next = page_number(key + 2 * kRound);
      }
      const bool masked = key + kPage > end || (in.window > 0 && position - key >= in.window);
      const float scale = in.softcap > 0 ? in.scale / in.softcap : in.scale * kLog2e;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 2 * N; ++i) {
          float x = s[n][i] * scale;
          if (in.softcap > 0) x = in.softcap * kLog2e * tanhf(x);
          if (masked && !sees(position, key + 8 * n + 2 * t + i % 2, in.window)) x = -infinity();
          s[n][i] = x;
        }
      // Every page has a token that the row sees, so tops are numbers.
#pragma unroll
      for (int half = 0; half < N; ++half) {  // heads g and g + 8
        float top = fmaxf(most[half], fmaxf(fmaxf(s[0][2 * half], s[0][2 * half + 1]), fmaxf(s[1][2 * half], s[1][2 * half + 1])));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float shrink = exp2_fast(most[half] - top);
        most[half] = top;
        float added = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[n][i] = exp2_fast(s[n][i] - top);
            added += s[n][i];
          }
        sum[half] = sum[half] * shrink + added;
        const float even = shuffle(shrink, 8 * static_cast<unsigned>(t)), odd = shuffle(shrink, 8 * static_cast<unsigned>(t) + 4);  // of heads 2t, 2t + 1
#pragma unroll
        for (int block = 0; block < Page<D>::kBlocks; ++block)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[block][half][i] *= i % 2 == 0 ? even : odd;
      }
      page.template add_values<N>(s, o);
      if (more) page.load_values(at + kPage * D);
    }

    // The warps' sums, relative to the largest top of all.
    const int busy = lesser(kDecodeWarps, (part_end - part_first + kPage - 1) / kPage);  // warps that had a page
    if (warp < busy) {
      Page<D>::template store_sums<N>(o, all + warp * Here::kRows * Here::kSumStride, Here::kSumStride);
#pragma unroll
      for (int half = 0; half < N; ++half) {
        float total = sum[half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        if (t == 0) {
          tops[warp * Here::kRows + g + 8 * half] = most[half];
          totals[warp * Here::kRows + g + 8 * half] = total;
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < heads * (D / 4); i += kDecodeThreads) {
      const int r = i / (D / 4), d = i % (D / 4) * 4;
      float top = -infinity(), total = 0, value[4] = {};
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) top = fmaxf(top, tops[(w < busy ? w : 0) * Here::kRows + r]);
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) {
        const int from = (w < busy ? w : 0) * Here::kRows + r;  // a factor of 0 where there is none
        const float factor = w < busy ? exp2_fast(tops[from] - top) : 0.0f;
        total = fmaf(totals[from], factor, total);
        float x[4];
        load_floats4(all + from * Here::kSumStride + d, x);
#pragma unroll
        for (int c = 0; c < 4; ++c) value[c] = fmaf(x[c], factor, value[c]);
      }
      if (parts == 1) {
        store4(out + r * D + d, value, 1.0f / total);
        continue;
      }
      const std::int64_t to = result + std::int64_t{r} * in.most_parts + part;
      store_floats4(in.sums + to * D + d, value);
      if (d == 0) {
        in.weights[2 * to] = top;
        in.weights[2 * to + 1] = total;
      }
    }
    __syncthreads();  // the sums have been read, and those of parts are written
  }
  if (parts == 1) return;
  if (each < parts) {
    unsigned* counter = in.arrivals + row * in.kv_heads * in.blocks_of_heads + line;
    if (thread == 0) *arrived = count_arrival(counter);
    __syncthreads();
    if (static_cast<int>(*arrived) != (parts - 1) / each) return;  // not the last
    acquire();
    if (thread == 0) *counter = 0;
  }
  join_parts<D>(in.sums + result * D, in.weights + 2 * result, in.most_parts, parts, heads, out);
}

// Of kHeads heads, that one thread block takes.
int blocks_of_heads(const AttentionShape& shape) { return shape.heads / shape.kv_heads <= kHeads || shape.head_dim > 128 ? 1 : 2; }

std::int64_t lines_of(const AttentionShape& shape) {
  return shape.kv_heads * ceil_div(shape.heads / shape.kv_heads, kHeads * blocks_of_heads(shape));
}

std::int64_t seen_of(const AttentionShape& shape, std::int64_t most_tokens) { return shape.window > 0 ? std::min(most_tokens, shape.window + kPage) : most_tokens; }
// The most parts that a row of at most `most_tokens` tokens has.
std::int64_t parts_of(const AttentionShape& shape, std::int64_t most_tokens) { return std::min<std::int64_t>(kMostParts, ceil_div(seen_of(shape, most_tokens), kRound)); }

// The most blocks that parts of such a row are divided among.
std::int64_t turns_of(std::int64_t seen, std::int64_t most_parts, int most_each) {
  std::int64_t turns = 1;
  for (std::int64_t size = kRound;; size += kRound) {  // the longest row of each size of parts
    const std::int64_t tokens = std::min(seen, most_parts * size), parts = ceil_div(tokens, size);
    turns = std::max(turns, ceil_div(parts, parts_each(static_cast<int>(parts), static_cast<int>(size), most_each)));
    if (tokens == seen) return turns;
  }
}

// Counters of arrivals. They begin the workspace, and there are as many whatever a call's rows, so that no call's sums lie where another counts.
constexpr std::int64_t kMostArrivals = 16384;
constexpr std::int64_t kArrivalBytes = kMostArrivals * static_cast<std::int64_t>(sizeof(unsigned));

void decode(const AttentionShape& shape, View<const bf16> q, const QkvPost* post, const PagedRows& rows, const KvPages& pages, View<bf16> out,
            std::int64_t most_tokens, void* workspace, cudaStream_t stream) {
  require(most_tokens >= 1 && most_tokens < std::int64_t{1} << 30, "attention over ", most_tokens, " tokens");
  if (out.rows == 0) return;
  const std::int64_t group = shape.heads / shape.kv_heads, lines = lines_of(shape), seen = seen_of(shape, most_tokens);
  require(out.rows * lines <= kMostArrivals, out.rows, " rows of ", lines, " groups of heads; a call takes ", kMostArrivals, " together");
  // As many blocks as there is room for at once, or a little fewer.
  const std::int64_t room = 2 * multiprocessors();
  std::int64_t parts = parts_of(shape, most_tokens);
  if (rows.any_order) parts = std::min(parts, std::max(room / (out.rows * lines), ceil_div(seen, kBlockTokens)));
  const auto most_each = static_cast<int>(std::min(parts, ceil_div(parts * out.rows * lines, room)));
  auto* sums = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + kArrivalBytes);
  const DecodeArguments in{.q = q.data, .q_stride = q.stride, .out = out.data, .out_stride = out.stride, .rows = rows, .pages = pages.data,
                           .heads = static_cast<int>(shape.heads), .kv_heads = static_cast<int>(shape.kv_heads), .group = static_cast<int>(group),
                           .blocks_of_heads = static_cast<int>(lines / shape.kv_heads), .window = static_cast<int>(shape.window), .most_parts = static_cast<int>(parts), .most_each = most_each,
                           .scale = shape.scale, .softcap = shape.softcap, .finish = post != nullptr, .post = post != nullptr ? *post : QkvPost{},
                           .arrivals = static_cast<unsigned*>(workspace), .sums = sums, .weights = sums + out.rows * shape.heads * parts * shape.head_dim};
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) {
    const auto start = [&]<int N>(std::integral_constant<int, N>) {
      launch_chained(stream, dim3(blocks(lines), blocks(out.rows), blocks(turns_of(seen, parts, most_each))), dim3(kDecodeThreads), Decode<D, N>::kSharedBytes, decode_kernel<D, N>, in);
    };
    if constexpr (D <= 128)
      if (blocks_of_heads(shape) == 2) return start(std::integral_constant<int, 2>{});
    start(std::integral_constant<int, 1>{});
  });
}

}  // namespace
}  // namespace attention

std::int64_t paged_attention_workspace(const AttentionShape& shape, std::int64_t rows, std::int64_t most_tokens) {
  return attention::kArrivalBytes + 4 * rows * shape.heads * attention::parts_of(shape, most_tokens) * (shape.head_dim + 2);
}

void paged_attention_decode(const AttentionShape& shape, View<const bf16> q, const PagedRows& rows, const KvPages& pages, View<bf16> out,
                            std::int64_t most_tokens, void* workspace, cudaStream_t stream) {
  attention::check_paged(shape, q, pages, out);
  attention::decode(shape, q, nullptr, rows, pages, out, most_tokens, workspace, stream);
}

bool paged_attention_finishes(const AttentionShape& shape, const QkvPost& post) {
  return post.rotary_dim == 0 || post.rotary_dim == shape.head_dim;
}

void paged_attention_step(const AttentionShape& shape, const QkvPost& post, View<const bf16> qkv, const PagedRows& rows, const KvPages& pages, View<bf16> out,
                          std::int64_t most_tokens, void* workspace, cudaStream_t stream) {
  const QkvShape whole{shape.heads, shape.kv_heads, shape.head_dim};
  require(qkv.cols == whole.columns(), "q, k and v have ", qkv.cols, " columns; the shape says ", whole.columns());
  require(paged_attention_finishes(shape, post), "rotary_dim is ", post.rotary_dim, " of heads of ", shape.head_dim, ": qkv_post_paged turns parts of a head");
  require(rows.apart, "rows that are finished here are their sequences' only ones");
  require((post.q_norm == nullptr) == (post.k_norm == nullptr), "q and k have a norm each, or neither");
  attention::check_paged(shape, qkv.columns(0, shape.heads * shape.head_dim), pages, out);
  attention::decode(shape, qkv, &post, rows, pages, out, most_tokens, workspace, stream);
}

}  // namespace engine::cuda
