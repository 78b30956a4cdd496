// attention_forward_warpgroup.cu: out and lse with the products of warpgroups, for head_dim 64 and 128. (attention.h; FlashAttention-3, arXiv:2407.08608)
//   A block owns 128 queries of a head. Keys and values pass through shared memory 128 at a time, two steps of each, so that copies have a step's time.
//   The scores of the next step are multiplied together with the values of this one, and while that goes on in the background the threads turn those
//   scores into probabilities, which stay in registers as the left operand of their product.
//   Blocks with most work start first, all heads of a tile side by side.
#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_warpgroup.cuh"
#include "cuda/runtime/launch.h"

namespace engine::cuda::attention {
namespace {

constexpr int kRows = kGroups * kGroupRows;
constexpr int kKeys = 128;  // of one step
static_assert(kRows == kAttentionTile);

template <int D>
constexpr std::int64_t kForwardShared = std::int64_t{sizeof(bf16)} * (kRows + 4 * kKeys) * D;

#ifdef ENGINE_WARPGROUP_PRODUCTS
struct Softmax {
  float most[2], sum[2], shrink[2];  // of this thread's two rows; sums are of its own columns
};

// Scores become probabilities; what was summed up so far is to be multiplied by `shrink`.
template <int F>
ENGINE_DEVICE void exponentials(float (&s)[F][4], Softmax& softmax, float units) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = softmax.most[half];
#pragma unroll
    for (int n = 0; n < F; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    const float base = top == -infinity() ? 0.0f : top * units;  // a row that has seen no key yet
    softmax.shrink[half] = exp2_fast(fmaf(softmax.most[half], units, -base));
    softmax.most[half] = top;
    float added[2] = {};
#pragma unroll
    for (int n = 0; n < F; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[n][2 * half + i];
        x = exp2_fast(fmaf(x, units, -base));
        added[i] += x;
      }
    softmax.sum[half] = fmaf(softmax.sum[half], softmax.shrink[half], added[0] + added[1]);
  }
}

// The same after soft cap and mask. Both branches hold the exponentials, and end in something that cannot be moved: else the compiler puts them after the
// branches and behind the wait for the product that goes on meanwhile.
template <int F>
ENGINE_DEVICE void probabilities(float (&s)[F][4], Softmax& softmax, const ForwardArguments& in, float units, int query, int key, bool masked) {
  if (!masked && in.softcap <= 0) {
    exponentials(s, softmax, units);
    settle(s);
    return;
  }
  if (in.softcap > 0) {
    const float scale = in.scale / in.softcap;
#pragma unroll
    for (int n = 0; n < F; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = tanhf(s[n][i] * scale);
  }
  if (masked) {
#pragma unroll
    for (int n = 0; n < F; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = sees(query + i / 2 * 8, key + 8 * n + i % 2, in.window) ? s[n][i] : -infinity();
  }
  exponentials(s, softmax, units);
  settle(s);
}
#endif

template <int D>
__global__ void __launch_bounds__(kGroupThreads, 1) forward_kernel(ForwardArguments in) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  const AttentionTile tile = in.tiles[static_cast<int>(blockIdx.x) / in.heads];
  if (tile.row >= tile.last) return;
  const int head = static_cast<int>(blockIdx.x) % in.heads, lane = static_cast<int>(lane_id());
  const int group_row = own_group_row();
  const int query = tile.row + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;  // this thread's first
  const bf16* k = in.k + std::int64_t{head / in.group} * D;
  const bf16* v = in.v + std::int64_t{head / in.group} * D;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* keys = queries + kRows * D;       // [2]
  bf16* values = keys + 2 * kKeys * D;    // [2]

  const int end = lesser(tile.row + kRows, tile.last), begin = first_key_block(tile.row, tile.first, in.window, kKeys);
  const int steps = (end - begin + kKeys - 1) / kKeys;
  const auto load_keys = [&](int step) {
    if (step < steps) load_swizzled<D, kKeys>(keys + step % 2 * kKeys * D, k, in.k_stride, begin + step * kKeys, tile.last);
  };
  const auto load_values = [&](int step) {
    if (step < steps) load_swizzled<D, kKeys>(values + step % 2 * kKeys * D, v, in.v_stride, begin + step * kKeys, tile.last);
  };
  load_swizzled<D, kRows>(queries, in.q + std::int64_t{head} * D, in.q_stride, tile.row, tile.last);
  load_keys(0);
  copy_async_commit();
  load_values(0);
  load_keys(1);
  copy_async_commit();

  const std::uint64_t q_matrix = along_rows<kRows>(queries, group_row);
  const std::uint64_t k_matrix = along_rows<kKeys>(keys), v_matrix = across_rows<kKeys>(values);
  constexpr int stage_bytes = kKeys * D * static_cast<int>(sizeof(bf16));
  const float units = score_units(in.scale, in.softcap);
  Softmax softmax{{-infinity(), -infinity()}, {0, 0}, {0, 0}};
  const auto softmax_step = [&](float(&s)[kKeys / 8][4], int step) {
    const int key = begin + step * kKeys;
    const bool masked = key + kKeys > tile.row + 1 || (in.window > 0 && end - key > in.window);
    probabilities(s, softmax, in, units, query, key + 2 * (lane % 4), masked);
  };

  float o[D / 8][4] = {};
  std::uint32_t p[kKeys / 16][4];
  {
    float s[kKeys / 8][4];
    copy_async_wait<1>();
    fence_shared_for_products();
    __syncthreads();
    fence_products();
    start_scores<D, kRows, kKeys>(s, q_matrix, k_matrix);
    commit_products();
    wait_products<0>(s);
    softmax_step(s, 0);
    to_fragments(p, s);
  }
  for (int step = 0; step + 1 < steps; ++step) {
    copy_async_wait<0>();
    fence_shared_for_products();
    __syncthreads();  // the next keys and this step's values are there; nobody reads the last step's values, nor these keys
    load_values(step + 1);  // before the products: after them, the exponentials would wait for these instructions
    load_keys(step + 2);
    copy_async_commit();
    float s[kKeys / 8][4];
    fence_products();
    start_scores<D, kRows, kKeys>(s, q_matrix, further(k_matrix, (step + 1) % 2 * stage_bytes));
    commit_products();
    start_sums(o, p, further(v_matrix, step % 2 * stage_bytes));
    commit_products();
    wait_products<1>(s);
    softmax_step(s, step + 1);
    wait_products<0>(o, p);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] *= softmax.shrink[i / 2];
    to_fragments(p, s);
  }
  copy_async_wait<0>();
  fence_shared_for_products();
  __syncthreads();
  fence_products();
  start_sums(o, p, further(v_matrix, (steps - 1) % 2 * stage_bytes));
  commit_products();

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = softmax.sum[half];
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    inverse[half] = 1.0f / total;
    const int token = query + 8 * half;
    if (in.lse != nullptr && lane % 4 == 0 && token < tile.last)
      in.lse[std::int64_t{head} * in.tokens + token] = softmax.most[half] * (units / kLog2e) + logf(total);
  }
  wait_products<0>(o, p);
  store_swizzled<D, kRows>(o, inverse, queries, group_row, in.out + std::int64_t{head} * D, in.out_stride, tile.row, tile.last);
#endif
}

}  // namespace

void forward_with_warpgroups(std::int64_t head_dim, const ForwardArguments& in, std::int64_t tiles, cudaStream_t stream) {
  const dim3 grid(blocks(tiles * in.heads));
  if (head_dim == 64)
    launch(stream, grid, dim3(kGroupThreads), kForwardShared<64>, forward_kernel<64>, in);
  else
    launch(stream, grid, dim3(kGroupThreads), kForwardShared<128>, forward_kernel<128>, in);
}

}  // namespace engine::cuda::attention
