// attention_backward_warpgroup.cu: dq, dk and dv with the products of warpgroups, for head_dim 64 and 128. (attention.h; the formulas are at the head of
// attention_backward.cu)
//   One launch has blocks of both kinds, so that those of one fill the device up while the last of the other end:
//   - 128 keys of a key head (or of one query head, when heads are split): over the queries that see them, 64 at a time, transposed, so that pᵀ and dsᵀ are
//     left operands straight from registers; dk and dv stay in registers too.
//   - 128 queries of a head: over the keys they see, 128 at a time.
//   While probabilities are computed the product for dp goes on, while ds is, the one for dv; a step's last product goes on into the next step, which is
//   why what it reads has three places in shared memory and not two.
#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_warpgroup.cuh"
#include "cuda/runtime/launch.h"

namespace engine::cuda::attention {
namespace {

constexpr int kBlockRows = kGroups * kGroupRows;
static_assert(kBlockRows == kAttentionTile);
constexpr int kQueryStep = 64, kKeyStep = 128;
constexpr int kStages = 3;       // of what a step's last product reads
constexpr int kValueStages = 2;  // of values in a block of queries

template <int D>
constexpr std::int64_t kKeyBlockShared =
    std::int64_t{sizeof(bf16)} * (2 * kBlockRows + 2 * kStages * kQueryStep) * D + std::int64_t{sizeof(float2)} * kStages * kQueryStep;
template <int D>
constexpr std::int64_t kQueryBlockShared = std::int64_t{sizeof(bf16)} * (2 * kBlockRows + (kStages + kValueStages) * kKeyStep) * D;

#ifdef ENGINE_WARPGROUP_PRODUCTS
template <int F, class Change>
ENGINE_DEVICE void for_each(float (&x)[F][4], Change&& change) {
#pragma unroll
  for (int n = 0; n < F; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) change(x[n][i], n, i);
}

// The two halves of a step's element-wise work. p in place of s …
template <int F, class Lse, class Seen>
ENGINE_DEVICE void probabilities(float (&s)[F][4], float units, bool masked, Lse&& lse, Seen&& seen) {
  for_each(s, [&](float& x, int n, int i) { x = exp2_fast(fmaf(x, units, -lse(n, i))); });
  if (masked) for_each(s, [&](float& x, int n, int i) { x = seen(n, i) ? x : 0.0f; });
}
// … and ds / scale in place of dp.
template <int F, class Delta>
ENGINE_DEVICE void gradients(float (&dp)[F][4], const float (&p)[F][4], Delta&& delta) {
  for_each(dp, [&](float& x, int n, int i) { x = (x - delta(n, i)) * p[n][i]; });
}
// With a soft cap, before both: s becomes tanh, and dp such that `gradients` includes the slope.
template <int F, class Delta>
ENGINE_DEVICE void cap(float (&s)[F][4], float (&dp)[F][4], float scale, Delta&& delta) {
  for_each(s, [&](float& x, int n, int i) {
    x = tanhf(x * scale);
    dp[n][i] = fmaf(dp[n][i] - delta(n, i), 1.0f - x * x, delta(n, i));
  });
}

template <int D>
ENGINE_DEVICE void key_block(const BackwardArguments& in, int block) {
  const bool split = in.part_dk != nullptr;
  const int block_heads = split ? in.heads : in.heads / in.group;
  const AttentionTile tile = in.tiles[in.tile_count - 1 - block / block_heads];  // the first keys of a sequence have most queries
  const int key = tile.row;
  if (key >= tile.last) return;
  const int block_head = block % block_heads, kv_head = split ? block_head / in.group : block_head;
  const int first_head = split ? block_head : kv_head * in.group, heads = split ? 1 : in.group;
  const int lane = static_cast<int>(lane_id()), group_row = own_group_row();
  const int own_key = key + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4, column = 2 * (lane % 4);

  bf16* keys = static_cast<bf16*>(block_shared());
  bf16* values = keys + kBlockRows * D;
  bf16* queries = values + kBlockRows * D;           // [kStages]
  bf16* douts = queries + kStages * kQueryStep * D;  // [kStages]
  float2* stats = reinterpret_cast<float2*>(douts + kStages * kQueryStep * D);  // [kStages][kQueryStep]

  const int end = in.window > 0 ? lesser(tile.last, key + kBlockRows + in.window - 1) : tile.last;
  const int steps_of_head = (end - key + kQueryStep - 1) / kQueryStep, steps = steps_of_head * heads;
  // The rows of a step that are not there are zeros, and so add nothing to dk and dv whatever their probabilities are.
  int load_head = first_head, load_query = key;
  const auto load_step = [&](int stage) {
    load_swizzled<D, kQueryStep>(queries + stage * kQueryStep * D, in.q + std::int64_t{load_head} * D, in.q_stride, load_query, tile.last);
    load_swizzled<D, kQueryStep>(douts + stage * kQueryStep * D, in.dout + std::int64_t{load_head} * D, in.dout_stride, load_query, tile.last);
    if (threadIdx.x < kQueryStep) {
      const int token = load_query + static_cast<int>(threadIdx.x);
      const bool inside = token < tile.last;
      copy_async8(stats + stage * kQueryStep + threadIdx.x, in.stats + std::int64_t{load_head} * in.tokens + (inside ? token : 0), inside);
    }
    copy_async_commit();
    load_query += kQueryStep;
    if (load_query >= end) {
      load_query = key;
      ++load_head;
    }
  };

  load_swizzled<D, kBlockRows>(keys, in.k + std::int64_t{kv_head} * D, in.k_stride, key, tile.last);
  load_swizzled<D, kBlockRows>(values, in.v + std::int64_t{kv_head} * D, in.v_stride, key, tile.last);
  load_step(0);
  const std::uint64_t k_matrix = along_rows<kBlockRows>(keys, group_row), v_matrix = along_rows<kBlockRows>(values, group_row);
  constexpr int stage_bytes = kQueryStep * D * static_cast<int>(sizeof(bf16));
  const float units = score_units(in.scale, in.softcap);

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  std::uint32_t p[kQueryStep / 16][4] = {}, ds[kQueryStep / 16][4] = {};
  int stage = 0, query = key;
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    fence_shared_for_products();
    __syncthreads();  // this step is there, and nobody reads the one before the last any more
    const int next = stage + 1 < kStages ? stage + 1 : 0;
    // Transposed: rows are keys, columns queries.
    float s[kQueryStep / 8][4], dp[kQueryStep / 8][4];
    fence_products();
    start_scores<D, kBlockRows, kQueryStep>(s, k_matrix, further(along_rows<kQueryStep>(queries), stage * stage_bytes));
    commit_products();
    start_scores<D, kBlockRows, kQueryStep>(dp, v_matrix, further(along_rows<kQueryStep>(douts), stage * stage_bytes));
    commit_products();
    if (step + 1 < steps) load_step(next);
    const float2* step_stats = stats + stage * kQueryStep + column;
    const auto lse = [&](int n, int i) { return step_stats[8 * n + i % 2].x; };
    const auto delta = [&](int n, int i) { return step_stats[8 * n + i % 2].y; };
    wait_products<1>(s, p, ds);  // and the last step's sums
    if (in.softcap > 0) {
      wait_products<0>(dp);
      cap(s, dp, in.scale / in.softcap, delta);
    }
    const bool masked = query < key + group_row + kGroupRows || (in.window > 0 && query + kQueryStep - (key + group_row) > in.window);
    probabilities(s, units, masked, lse, [&](int n, int i) { return sees(query + 8 * n + column + i % 2, own_key + i / 2 * 8, in.window); });
    to_fragments(p, s);
    fence_products();
    start_sums(dv, p, further(across_rows<kQueryStep>(douts), stage * stage_bytes));
    commit_products();
    wait_products<1>(dp);
    gradients(dp, s, delta);
    to_fragments(ds, dp);
    fence_products();
    start_sums(dk, ds, further(across_rows<kQueryStep>(queries), stage * stage_bytes));
    commit_products();

    stage = next;
    query += kQueryStep;
    if (query >= end) query = key;
  }
  wait_products<0>(dk, dv, p, ds);

  if (split) {
    const auto store = [&](float* part, const float(&sums)[D / 8][4], float scale) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = own_key + 8 * half;
        if (token >= tile.last) continue;
        float* row = part + (std::int64_t{block_head} * in.tokens + token) * D + column;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) *reinterpret_cast<float2*>(row + 8 * n) = float2{sums[n][2 * half] * scale, sums[n][2 * half + 1] * scale};
      }
    };
    store(in.part_dv, dv, 1.0f);
    store(in.part_dk, dk, in.scale);
  } else {
    const float one[2] = {1.0f, 1.0f}, scale[2] = {in.scale, in.scale};
    const std::int64_t columns = std::int64_t{kv_head} * D;
    __syncthreads();  // nobody reads keys and values any more
    store_swizzled<D, kBlockRows>(dv, one, values, group_row, in.dv + columns, in.dv_stride, key, tile.last);
    store_swizzled<D, kBlockRows>(dk, scale, keys, group_row, in.dk + columns, in.dk_stride, key, tile.last);
  }
}

template <int D>
ENGINE_DEVICE void query_block(const BackwardArguments& in, int block) {
  const AttentionTile tile = in.tiles[block / in.heads];
  if (tile.row >= tile.last) return;
  const int head = block % in.heads, lane = static_cast<int>(lane_id()), column = 2 * (lane % 4);
  const int group_row = own_group_row();
  const int query = tile.row + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;  // this thread's first
  const bf16* k = in.k + std::int64_t{head / in.group} * D;
  const bf16* v = in.v + std::int64_t{head / in.group} * D;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* douts = queries + kBlockRows * D;
  bf16* keys = douts + kBlockRows * D;            // [kStages]
  bf16* values = keys + kStages * kKeyStep * D;   // [kValueStages]

  const int end = lesser(tile.row + kBlockRows, tile.last), begin = first_key_block(tile.row, tile.first, in.window, kKeyStep);
  const auto load_step = [&](int key, int stage, int value_stage) {
    load_swizzled<D, kKeyStep>(keys + stage * kKeyStep * D, k, in.k_stride, key, tile.last);
    load_swizzled<D, kKeyStep>(values + value_stage * kKeyStep * D, v, in.v_stride, key, tile.last);
    copy_async_commit();
  };
  load_swizzled<D, kBlockRows>(queries, in.q + std::int64_t{head} * D, in.q_stride, tile.row, tile.last);
  load_swizzled<D, kBlockRows>(douts, in.dout + std::int64_t{head} * D, in.dout_stride, tile.row, tile.last);
  load_step(begin, 0, 0);

  float2 stats[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = query + 8 * half;
    stats[half] = token < tile.last ? in.stats[std::int64_t{head} * in.tokens + token] : float2{infinity(), 0.0f};  // then p is 0
  }
  const auto lse = [&](int, int i) { return stats[i / 2].x; };
  const auto delta = [&](int, int i) { return stats[i / 2].y; };
  const std::uint64_t q_matrix = along_rows<kBlockRows>(queries, group_row), dout_matrix = along_rows<kBlockRows>(douts, group_row);
  constexpr int stage_bytes = kKeyStep * D * static_cast<int>(sizeof(bf16));
  const float units = score_units(in.scale, in.softcap);

  float dq[D / 8][4] = {};
  std::uint32_t ds[kKeyStep / 16][4] = {};
  int stage = 0, value_stage = 0;
  for (int key = begin; key < end; key += kKeyStep) {
    copy_async_wait<0>();
    fence_shared_for_products();
    __syncthreads();  // this step is there; nobody reads the keys of the one before the last, nor the values of the last
    const int next = stage + 1 < kStages ? stage + 1 : 0;
    float s[kKeyStep / 8][4], dp[kKeyStep / 8][4];
    fence_products();
    start_scores<D, kBlockRows, kKeyStep>(s, q_matrix, further(along_rows<kKeyStep>(keys), stage * stage_bytes));
    commit_products();
    start_scores<D, kBlockRows, kKeyStep>(dp, dout_matrix, further(along_rows<kKeyStep>(values), value_stage * stage_bytes));
    commit_products();
    if (key + kKeyStep < end) load_step(key + kKeyStep, next, value_stage ^ 1);
    wait_products<1>(s, ds);  // and the last step's sums
    if (in.softcap > 0) {
      wait_products<0>(dp);
      cap(s, dp, in.scale / in.softcap, delta);
    }
    const bool masked = key + kKeyStep > tile.row + 1 || (in.window > 0 && end - key > in.window);
    probabilities(s, units, masked, lse, [&](int n, int i) { return sees(query + i / 2 * 8, key + 8 * n + column + i % 2, in.window); });
    wait_products<0>(dp);
    gradients(dp, s, delta);
    to_fragments(ds, dp);
    fence_products();
    start_sums(dq, ds, further(across_rows<kKeyStep>(keys), stage * stage_bytes));
    commit_products();
    stage = next;
    value_stage ^= 1;
  }
  wait_products<0>(dq, ds);
  __syncthreads();  // nobody reads queries any more
  const float scale[2] = {in.scale, in.scale};
  store_swizzled<D, kBlockRows>(dq, scale, queries, group_row, in.dq + std::int64_t{head} * D, in.dq_stride, tile.row, tile.last);
}
#endif

template <int D>
__global__ void __launch_bounds__(kGroupThreads, 1) gradient_kernel(BackwardArguments in, int key_blocks) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  const int block = static_cast<int>(blockIdx.x);
  if (block < key_blocks)
    key_block<D>(in, block);
  else
    query_block<D>(in, block - key_blocks);
#endif
}

template <int D>
void backward(const BackwardArguments& in, cudaStream_t stream) {
  const std::int64_t key_blocks = std::int64_t{in.tile_count} * (in.part_dk != nullptr ? in.heads : in.heads / in.group);
  constexpr std::int64_t shared = kKeyBlockShared<D> > kQueryBlockShared<D> ? kKeyBlockShared<D> : kQueryBlockShared<D>;
  launch(stream, dim3(blocks(key_blocks + std::int64_t{in.tile_count} * in.heads)), dim3(kGroupThreads), shared, gradient_kernel<D>, in,
         static_cast<int>(key_blocks));
}

}  // namespace

void backward_with_warpgroups(std::int64_t head_dim, const BackwardArguments& in, cudaStream_t stream) {
  if (head_dim == 64)
    backward<64>(in, stream);
  else
    backward<128>(in, stream);
}

}  // namespace engine::cuda::attention
