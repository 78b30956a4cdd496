// attention_forward.cuh: out and lse of a tile of queries of one head, by one block of four warps, wherever its keys lie. (FlashAttention-2, arXiv:2307.08691)
//   Queries stay in shared memory; keys and values pass through it 64 at a time. While scores are computed the values arrive, while the values are
//   multiplied the next keys do. A warp owns 32 queries (16 at head_dim 256), so that each key it reads from shared memory serves 32 rows.
//   Work: 4·T²/2·head_dim·heads FLOP for a causal sequence; each warp reads 128 B of keys or values per 8,192 FLOP at 32 rows, which is what keeps
//   shared memory (128 B a cycle) just below the tensor cores' rate for mma.sync.
#pragma once

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_tile.cuh"

namespace engine::cuda::attention {

inline constexpr int kKeys = 64;  // of one step

// What a block computes: queries at positions row … of one head. Keys are at positions from `first` on, both end before `last`.
struct ForwardTile {
  const bf16* q;        // where position 0 of the head would be, like out
  bf16* out;
  float* lse;           // null, or likewise
  std::int64_t q_stride, out_stride;
  int row, first, last;
};

template <int D>
struct Forward {
  static constexpr int kFragments = D > 128 ? 1 : 2;  // of 16 rows, in each warp
  static constexpr int kRows = kWarps * 16 * kFragments;
  static constexpr std::int64_t kSharedBytes = sizeof(bf16) * (kRows + 2 * kKeys) * D;
};

// Masked and soft-capped scores of the step: times score_units they are in units of log 2; −∞ where the query does not see the key.
template <int F>
ENGINE_DEVICE void finish_scores(float (&s)[F][kKeys / 8][4], const Scores& in, int query, int key, bool masked) {
  const auto each = [&](auto&& change) {
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) change(s[f][n][i], query + 16 * f + i / 2 * 8, key + 8 * n + i % 2);
  };
  if (in.softcap > 0) {  // decided once, not for each score: tanh is long
    const float scale = in.scale / in.softcap;
    each([&](float& x, int, int) { x = tanhf(x * scale); });
  }
  if (masked)
    each([&](float& x, int q, int k) { x = sees(q, k, in.window) ? x : -infinity(); });
}

// load_keys(tile, key) and load_values(tile, key) begin to copy positions key … key + kKeys - 1 into a tile, zeros from tile.last on.
template <int D, class LoadKeys, class LoadValues>
ENGINE_DEVICE void forward(const Scores& in, const ForwardTile& tile, const LoadKeys& load_keys, const LoadValues& load_values) {
  constexpr int F = Forward<D>::kFragments, rows = Forward<D>::kRows;
  const int row = tile.row, lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / kWarp;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* keys = queries + rows * D;
  bf16* values = keys + kKeys * D;

  const int end = lesser(row + rows, tile.last);
  const int warp_row = warp * 16 * F, query = row + warp_row + lane / 4;  // this thread's first row
  float o[F][D / 8][4] = {}, most[F][2], sum[F][2] = {};
  const float units = score_units(in.scale, in.softcap);  // scores are kept without it, and `most` too
  for (int f = 0; f < F; ++f) most[f][0] = most[f][1] = -infinity();

  int key = first_key_block(row, tile.first, in.window, kKeys);
  load_tile<D, rows>(queries, tile.q, tile.q_stride, row, tile.last);
  load_keys(keys, key);
  copy_async_commit();
  for (; key < end; key += kKeys) {
    copy_async_wait<0>();
    __syncthreads();  // the keys are there, and nobody reads the last step's values
    load_values(values, key);
    copy_async_commit();

    float s[F][kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      std::uint32_t a[F][4];
#pragma unroll
      for (int f = 0; f < F; ++f) load_a<D>(a[f], queries, warp_row + 16 * f, step);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        std::uint32_t b[4];
        load_b_rows<D>(b, keys, 16 * n, step);
#pragma unroll
        for (int f = 0; f < F; ++f) multiply_two(s[f][2 * n], s[f][2 * n + 1], a[f], b);
      }
    }
    const bool masked = key + kKeys > row + 1 || (in.window > 0 && end - key > in.window);
    finish_scores(s, in, query, key + 2 * (lane % 4), masked);

    std::uint32_t p[F][kKeys / 16][4];
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // rows g and g + 8
        float top = most[f][half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[f][n][2 * half], s[f][n][2 * half + 1]));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float base = top == -infinity() ? 0.0f : top * units;  // a row that has seen no key yet
        const float shrink = exp2_fast(fmaf(most[f][half], units, -base));
        most[f][half] = top;
        float added = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[f][n][i] = exp2_fast(fmaf(s[f][n][i], units, -base));
            added += s[f][n][i];
          }
        sum[f][half] = sum[f][half] * shrink + added;  // of this thread's columns; the four threads of a row meet at the end
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[f][n][2 * half] *= shrink;
          o[f][n][2 * half + 1] *= shrink;
        }
      }
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) to_a(p[f][n], s[f][2 * n], s[f][2 * n + 1]);

    copy_async_wait<0>();
    __syncthreads();  // the values are there, and nobody reads this step's keys
    if (key + kKeys < end) load_keys(keys, key + kKeys);
    copy_async_commit();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        std::uint32_t b[4];
        load_b_columns<D>(b, values, 16 * step, n);
#pragma unroll
        for (int f = 0; f < F; ++f) multiply_two(o[f][2 * n], o[f][2 * n + 1], p[f][step], b);
      }
  }

#pragma unroll
  for (int f = 0; f < F; ++f) {
    float inverse[2];
    for (int half = 0; half < 2; ++half) {
      float total = sum[f][half];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      inverse[half] = 1.0f / total;
      const int token = query + 16 * f + 8 * half;
      if (tile.lse != nullptr && lane % 4 == 0 && token < tile.last) tile.lse[token] = most[f][half] * (units / kLog2e) + logf(total);
    }
    store_rows<D>(o[f], inverse, queries, warp_row + 16 * f, tile.out, tile.out_stride, row, tile.last);
  }
}

}  // namespace engine::cuda::attention
