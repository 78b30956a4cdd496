// paged_attention_prefill_warpgroup.cu: chunks of prompts with the products of warpgroups; keys are gathered through the table. (attention_forward_warpgroup.cuh)
//   A block takes 128 queries of a head, and of their keys all, or one of several parts of equal length: a chunk of a long prompt that is read beside others'
//   decoding has few queries, and its blocks would walk through all keys before it while most of the device waits. Parts leave sums in fp32, each divided by
//   its own total, and the logarithm of that; a second kernel joins them.
#include <algorithm>

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_forward_warpgroup.cuh"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda::attention {
namespace {

static_assert(kPagedTile == kGroupQueries);

constexpr int kMostParts = 16;
constexpr int kLeastKeys = 512;           // of a part; what a block does before and after its keys costs about half as many
constexpr int kPage = static_cast<int>(kPageTokens);
constexpr int kJoinWarps = 8;
constexpr std::int64_t kJoinRows = 32;    // of a block that joins

template <int D>
constexpr std::int64_t kPagedShared = kForwardGroupsShared<D> + kMostGroupPages * std::int64_t{sizeof(std::int32_t)};

// Of parts in the workspace: each holds 128 rows.
std::int64_t most_slots() { return 2 * std::int64_t{multiprocessors()}; }

// The number of parts that ends soonest when all multiprocessors take blocks as they come.
int parts_of(std::int64_t wholes, std::int64_t keys) {
  int best = 1;
  double least = 0;
  for (int parts = 1; parts <= kMostParts; ++parts) {
    if (parts > 1 && (wholes * parts > most_slots() || keys < parts * std::int64_t{kLeastKeys})) break;
    const auto rounds = static_cast<double>(ceil_div(wholes * parts, multiprocessors()));
    const double time = rounds * (static_cast<double>(keys) / parts + kLeastKeys / 2.0) + (parts > 1 ? kLeastKeys : 0);
    if (parts == 1 || time < least) least = time, best = parts;
  }
  return best;
}

struct Parts {
  int count;
  float* sums;  // [tile, part, head][128][D]; null where count is 1
  float* logs;  // [tile, part, head][128] of totals, base 2; −∞ where a row sees none of the part's keys
};

template <int D>
__global__ void __launch_bounds__(kGroupThreads, 1) prefill_kernel(PagedForwardArguments in, Parts parts) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  allow_next();
  wait_for_previous();
  const int heads = in.group * in.kv_heads, head = static_cast<int>(blockIdx.x) % heads, part = static_cast<int>(blockIdx.x) / heads % parts.count;
  const PagedChunk of = in.tiles[static_cast<int>(blockIdx.x) / heads / parts.count];
  if (of.rows == 0) return;
  const int thread = static_cast<int>(threadIdx.x), lane = static_cast<int>(lane_id()), last = of.position + of.rows;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* keys = queries + kGroupQueries * D;   // [2]
  bf16* values = keys + 2 * kGroupKeys * D;   // [2]
  auto* pages = reinterpret_cast<std::int32_t*>(values + 2 * kGroupKeys * D);  // of this part's keys

  const int all_begin = first_key_block(of.position, 0, in.scores.window, kGroupKeys), all_steps = (last - all_begin + kGroupKeys - 1) / kGroupKeys;
  const int first_step = all_steps * part / parts.count, steps = all_steps * (part + 1) / parts.count - first_step;
  const GroupTile tile{of.position, last, all_begin + first_step * kGroupKeys, last, steps};
  float* logs = parts.logs + std::int64_t{blockIdx.x} * kGroupQueries;
  if (steps == 0) {
    if (thread < kGroupQueries) logs[thread] = -infinity();
    return;
  }

  const std::int32_t* table = in.tables + of.sequence * in.table_stride;
  const int first_page = tile.begin / kPage, last_page = (last - 1) / kPage;
  for (int i = thread; i < steps * (kGroupKeys / kPage); i += kGroupThreads) pages[i] = table[lesser(first_page + i, last_page)];
  const bf16* q = in.q + head * D + (std::int64_t{of.first_row} - of.position) * in.q_stride;  // where position 0 would be
  load_swizzled<D, kGroupQueries>(queries, q, in.q_stride, of.position, last);
  __syncthreads();

  constexpr int chunks = D / 8, together = kGroupThreads / chunks;  // rows that are copied at once: one page or two
  const int row = thread / chunks, chunk = thread % chunks;
  const std::int64_t page_elements = std::int64_t{in.kv_heads} * 2 * kPage * D;
  const bf16* pool = in.pages + head / in.group * std::int64_t{2 * kPage * D} + row % kPage * D + chunk * 8;
  const auto gather = [&](bf16* to, const bf16* from, int step) {
    if (step >= steps) return;
    to += step % 2 * kGroupKeys * D + swizzled<kGroupKeys>(row, chunk);
    const std::int32_t* page = pages + step * (kGroupKeys / kPage) + row / kPage;
    const int key = tile.begin + step * kGroupKeys + row;
#pragma unroll
    for (int r = 0; r < kGroupKeys; r += together)
      copy_async16(to + r * 64, from + page[r / kPage] * page_elements, key + r < last ? 16 : 0);
  };
  float o[D / 8][4] = {};
  Softmax softmax{{-infinity(), -infinity()}, {0, 0}, {0, 0}};
  forward_groups<D>(in.scores, tile, queries, keys, values, [&](int step) { gather(keys, pool, step); }, [&](int step) { gather(values, pool + kPage * D, step); }, o, softmax);

  const int group_row = own_group_row(), own_row = group_row + thread % kWarpgroup / kWarp * 16 + lane / 4;  // of the tile
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_total(softmax, half);
    inverse[half] = total > 0 ? 1.0f / total : 0.0f;
    if (parts.count > 1 && lane % 4 == 0)
      logs[own_row + 8 * half] = total > 0 ? softmax.most[half] * score_units(in.scores.scale, in.scores.softcap) + log2f(total) : -infinity();
  }
  if (parts.count == 1) {
    store_swizzled<D, kGroupQueries>(o, inverse, queries, group_row, in.out + head * D + (std::int64_t{of.first_row} - of.position) * in.out_stride, in.out_stride, of.position, last);
    return;
  }
  float* sums = parts.sums + (std::int64_t{blockIdx.x} * kGroupQueries + own_row) * D + 2 * (lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<float2*>(sums + 8 * half * D + 8 * n) = {o[n][2 * half] * inverse[half], o[n][2 * half + 1] * inverse[half]};
#endif
}

// out of kJoinRows rows of a tile and head, a warp for each row.
template <int D>
__global__ void __launch_bounds__(kJoinWarps * kWarp) join_kernel(PagedForwardArguments in, Parts parts) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  constexpr int kColumns = D / kWarp;  // of a lane
  allow_next();
  wait_for_previous();
  const int heads = in.group * in.kv_heads, head = static_cast<int>(blockIdx.x) % heads, number = static_cast<int>(blockIdx.x) / heads;
  const PagedChunk of = in.tiles[number];
  const int end = lesser((static_cast<int>(blockIdx.y) + 1) * static_cast<int>(kJoinRows), of.rows), column = static_cast<int>(lane_id()) * kColumns;
  for (int row = static_cast<int>(blockIdx.y) * static_cast<int>(kJoinRows) + static_cast<int>(threadIdx.x) / kWarp; row < end; row += kJoinWarps) {
    const auto at = [&](int part) { return ((std::int64_t{number} * parts.count + part) * heads + head) * kGroupQueries + row; };
    float most = -infinity();
    for (int part = 0; part < parts.count; ++part) most = fmaxf(most, parts.logs[at(part)]);
    float sums[kColumns] = {}, total = 0;
    for (int part = 0; part < parts.count; ++part) {
      const float log = parts.logs[at(part)];
      if (log == -infinity()) continue;  // a part of no keys has left no sums
      const float weight = exp2f(log - most);
      total += weight;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[c] = fmaf(weight, parts.sums[at(part) * D + column + c], sums[c]);
    }
    auto* out = reinterpret_cast<std::uint32_t*>(in.out + (std::int64_t{of.first_row} + row) * in.out_stride + head * D + column);
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) out[c / 2] = pack(sums[c] / total, sums[c + 1] / total);
  }
#endif
}

template <int D>
void prefill(const PagedForwardArguments& in, std::int64_t tiles, std::int64_t keys, void* workspace, cudaStream_t stream) {
  const std::int64_t wholes = tiles * in.group * in.kv_heads;
  Parts parts{parts_of(wholes, keys), static_cast<float*>(workspace), nullptr};
  parts.logs = parts.sums + most_slots() * kGroupQueries * D;
  launch_chained(stream, dim3(blocks(wholes * parts.count)), dim3(kGroupThreads), kPagedShared<D>, prefill_kernel<D>, in, parts);
  if (parts.count > 1) launch_chained(stream, dim3(blocks(wholes), static_cast<unsigned>(kPagedTile / kJoinRows)), dim3(kJoinWarps * kWarp), 0, join_kernel<D>, in, parts);
}

}  // namespace

std::int64_t prefill_workspace_with_warpgroups(std::int64_t head_dim) { return most_slots() * kGroupQueries * (head_dim + 1) * std::int64_t{sizeof(float)}; }

void prefill_with_warpgroups(std::int64_t head_dim, const PagedForwardArguments& in, std::int64_t tiles, std::int64_t keys, void* workspace, cudaStream_t stream) {
  if (head_dim == 64)
    prefill<64>(in, tiles, keys, workspace, stream);
  else
    prefill<128>(in, tiles, keys, workspace, stream);
}

}  // namespace engine::cuda::attention
