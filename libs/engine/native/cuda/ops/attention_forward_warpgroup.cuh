// attention_forward_warpgroup.cuh: sums of a tile of 128 queries of one head, by one block of two warpgroups, wherever its keys lie. head_dim 64 and 128.
//   (FlashAttention-3, arXiv:2407.08608)
//   Keys and values pass through shared memory 128 at a time, two steps of each, so that copies have a step's time. The scores of the next step are multiplied
//   together with the values of this one, and while that goes on in the background the threads turn those scores into probabilities, which stay in registers
//   as the left operand of their product.
#pragma once

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_warpgroup.cuh"

namespace engine::cuda::attention {

inline constexpr int kGroupQueries = kGroups * kGroupRows;
inline constexpr int kGroupKeys = 128;  // of one step

template <int D>
inline constexpr std::int64_t kForwardGroupsShared = std::int64_t{sizeof(bf16)} * (kGroupQueries + 4 * kGroupKeys) * D;

// What a block sums up: queries at positions row …, those before `last`, over keys at positions begin …, of which the tile sees those before `end`.
struct GroupTile {
  int row, last, begin, end;
  int steps;  // of kGroupKeys keys, at least 1
};

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
ENGINE_DEVICE void probabilities(float (&s)[F][4], Softmax& softmax, const Scores& in, float units, int query, int key, bool masked) {
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


// o += probabilities · values, not yet divided by their sums. The queries' copy into shared memory has begun; load_keys(step) and load_values(step) begin those
// of a step (nothing beyond the last) into keys and values + step % 2 · kGroupKeys · D, zeros for keys that are not there.
template <int D, class LoadKeys, class LoadValues>
ENGINE_DEVICE void forward_groups(const Scores& in, const GroupTile& tile, const bf16* queries, const bf16* keys, const bf16* values, const LoadKeys& load_keys,
                                  const LoadValues& load_values, float (&o)[D / 8][4], Softmax& softmax) {
  const int lane = static_cast<int>(lane_id()), group_row = own_group_row();
  const int query = tile.row + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;  // this thread's first
  load_keys(0);
  copy_async_commit();
  load_values(0);
  load_keys(1);
  copy_async_commit();

  const std::uint64_t q_matrix = along_rows<kGroupQueries>(queries, group_row);
  const std::uint64_t k_matrix = along_rows<kGroupKeys>(keys), v_matrix = across_rows<kGroupKeys>(values);
  constexpr int stage_bytes = kGroupKeys * D * static_cast<int>(sizeof(bf16));
  const float units = score_units(in.scale, in.softcap);
  const auto softmax_step = [&](float(&s)[kGroupKeys / 8][4], int step) {
    const int key = tile.begin + step * kGroupKeys;
    const bool masked = key + kGroupKeys > tile.row + 1 || (in.window > 0 && tile.end - key > in.window);
    probabilities(s, softmax, in, units, query, key + 2 * (lane % 4), masked);
  };

  std::uint32_t p[kGroupKeys / 16][4];
  {
    float s[kGroupKeys / 8][4];
    copy_async_wait<1>();
    fence_shared_for_products();
    __syncthreads();
    fence_products();
    start_scores<D, kGroupQueries, kGroupKeys>(s, q_matrix, k_matrix);
    commit_products();
    wait_products<0>(s);
    softmax_step(s, 0);
    to_fragments(p, s);
  }
  for (int step = 0; step + 1 < tile.steps; ++step) {
    copy_async_wait<0>();
    fence_shared_for_products();
    __syncthreads();  // the next keys and this step's values are there; nobody reads the last step's values, nor these keys
    load_values(step + 1);  // before the products: after them, the exponentials would wait for these instructions
    load_keys(step + 2);
    copy_async_commit();
    float s[kGroupKeys / 8][4];
    fence_products();
    start_scores<D, kGroupQueries, kGroupKeys>(s, q_matrix, further(k_matrix, (step + 1) % 2 * stage_bytes));
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
  start_sums(o, p, further(v_matrix, (tile.steps - 1) % 2 * stage_bytes));
  commit_products();

  wait_products<0>(o, p);
}

// Of this thread's row g or g + 8, all columns.
ENGINE_DEVICE float row_total(const Softmax& softmax, int half) {
  float total = softmax.sum[half];
  total += shuffle_xor(total, 1);
  return total + shuffle_xor(total, 2);
}
#endif

}  // namespace engine::cuda::attention
