// attention_backward.cu: dq, dk and dv in three launches. (attention.h; the formulas are those of FlashAttention-2, arXiv:2307.08691, algorithm 2)
//   With p = exp(s − lse), dp = dout·vᵀ, delta = Σ out·dout (= Σ p·dp) and ds = p·(dp − delta)·cap'·scale:
//     dv = pᵀ·dout      dk = dsᵀ·q      dq = ds·k      (scale is applied to the finished sums)
//   1. delta, beside lse in other units.
//   2. dk and dv: a block owns 64 keys of a key head and goes over the queries that see them, of every head of the group, in order. It computes the
//      transposed scores, so that pᵀ and dsᵀ are already the left operands of the last two products and never leave the registers.
//   3. dq: a block owns 64 queries of a head and goes over the keys they see.
//   Scores are computed twice (7 products instead of 5), which is the price of adding every gradient in one fixed order without atomics.
//   With few tokens there are too few key blocks to fill the device: then each query head of a group has blocks of its own, which write fp32 sums for
//   its key head, and a fourth launch adds the group's. Which of the two is taken depends on the shape alone.
#include "cuda/ops/attention.h"
#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_launch.h"
#include "cuda/ops/attention_tile.cuh"
#include "cuda/runtime/error.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/memory.h"

namespace engine::cuda {
namespace attention {
namespace {

inline constexpr int kBlock = 64;  // queries or keys of a block, and of one step
inline constexpr int kParts = static_cast<int>(kAttentionTile) / kBlock;
// With fewer tiles of keys than this heads are not grouped: blocks differ in length, and a large device has 132 multiprocessors to keep busy.
inline constexpr std::int64_t kEnoughTiles = 192;

bool splits_heads(const AttentionShape& shape, std::int64_t tokens) {
  return shape.heads > shape.kv_heads && tokens / kAttentionTile * shape.kv_heads < kEnoughTiles;
}

// p (in place of s) and ds / scale (in place of dp) of a fragment's scores. lse(i) and delta(i) are those of element i's query, lse in units of log 2;
// seen(n, i) tells whether it sees the key. What is the same for all of them is decided once: tanh and masks are long.
template <int N, class Lse, class Delta, class Seen>
ENGINE_DEVICE void gradient_of_scores(float (&s)[N][4], float (&dp)[N][4], const BackwardArguments& in, bool masked, Lse&& lse, Delta&& delta, Seen&& seen) {
  const auto each = [](auto&& change) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) change(n, i);
  };
  const float units = score_units(in.scale, in.softcap);
  const auto probability = [&](float x, int n, int i) { return exp2_fast(fmaf(x, units, -lse(n, i))); };
  if (in.softcap > 0) {
    const float scale = in.scale / in.softcap;
    each([&](int n, int i) {
      const float t = tanhf(s[n][i] * scale);
      s[n][i] = probability(t, n, i);
      dp[n][i] = (dp[n][i] - delta(n, i)) * (1.0f - t * t);
    });
  } else {
    each([&](int n, int i) {
      s[n][i] = probability(s[n][i], n, i);
      dp[n][i] -= delta(n, i);
    });
  }
  if (masked) each([&](int n, int i) { s[n][i] = seen(n, i) ? s[n][i] : 0.0f; });
  each([&](int n, int i) { dp[n][i] *= s[n][i]; });
}

// ---- 1

// Eight values of a head for each lane.
template <int D>
constexpr int kRowLanes = D <= 16 ? 2 : D <= 32 ? 4 : D <= 64 ? 8 : D <= 128 ? 16 : 32;

template <int D>
__global__ void __launch_bounds__(kThreads) stats_kernel(BackwardArguments in) {
  constexpr int lanes = kRowLanes<D>;
  const std::int64_t at = std::int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes;  // token · heads + head
  const bool inside = at < in.tokens * in.heads;
  const std::int64_t token = inside ? at / in.heads : 0, head = inside ? at % in.heads : 0;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  float sum = 0;
  if (8 * lane < D) {
    float out[8], dout[8];
    widen8(load16(in.out + token * in.out_stride + head * D + 8 * lane), out);
    widen8(load16(in.dout + token * in.dout_stride + head * D + 8 * lane), dout);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(out[i], dout[i], sum);
  }
  sum = warp_sum(sum, lanes);
  if (lane == 0 && inside) in.stats[head * in.tokens + token] = float2{in.lse[head * in.tokens + token] * kLog2e, sum};
}

// ---- 2

// Which gradients a block of the second launch keeps in registers: both fit up to head_dim 128.
enum class Of : std::uint8_t { both, values, keys };

template <int D>
struct KeyBlock {
  static constexpr int kStages = D > 128 ? 1 : 2;  // steps of queries in shared memory
  static constexpr std::int64_t kSharedBytes = sizeof(bf16) * (2 + 2 * kStages) * kBlock * D + sizeof(float2) * kStages * kBlock;
};

template <int D, Of kOf>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(BackwardArguments in) {
  constexpr int stages = KeyBlock<D>::kStages;
  const AttentionTile tile = in.tiles[gridDim.x - 1 - blockIdx.x];  // the first keys of a sequence have most queries
  const int key = tile.row + static_cast<int>(blockIdx.z) % kParts * kBlock;
  if (key >= tile.last) return;
  const bool split = in.part_dk != nullptr;
  const int kv_head = split ? static_cast<int>(blockIdx.y) / in.group : static_cast<int>(blockIdx.y);
  const int first_head = split ? static_cast<int>(blockIdx.y) : kv_head * in.group, heads = split ? 1 : in.group;
  const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / kWarp;

  bf16* keys = static_cast<bf16*>(block_shared());
  bf16* values = keys + kBlock * D;
  bf16* queries = values + kBlock * D;              // [stages]
  bf16* douts = queries + stages * kBlock * D;      // [stages]
  float2* stats = reinterpret_cast<float2*>(douts + stages * kBlock * D);  // [stages][kBlock]

  const int end = in.window > 0 ? lesser(tile.last, key + kBlock + in.window - 1) : tile.last;
  const int steps_of_head = (end - key + kBlock - 1) / kBlock, steps = steps_of_head * heads;
  const auto load_step = [&](int step) {
    const std::int64_t head = first_head + step / steps_of_head;
    const int query = key + step % steps_of_head * kBlock, stage = step % stages;
    load_tile<D, kBlock>(queries + stage * kBlock * D, in.q + head * D, in.q_stride, query, tile.last);
    load_tile<D, kBlock>(douts + stage * kBlock * D, in.dout + head * D, in.dout_stride, query, tile.last);
    if (threadIdx.x < kBlock) {  // zeros where there is no query: its rows are zeros too and add nothing, whatever its probabilities
      const int token = query + static_cast<int>(threadIdx.x);
      const bool inside = token < tile.last;
      copy_async8(stats + stage * kBlock + threadIdx.x, in.stats + head * in.tokens + (inside ? token : 0), inside);
    }
    copy_async_commit();
  };

  load_tile<D, kBlock>(keys, in.k + std::int64_t{kv_head} * D, in.k_stride, key, tile.last);
  load_tile<D, kBlock>(values, in.v + std::int64_t{kv_head} * D, in.v_stride, key, tile.last);
  load_step(0);
  constexpr int dk_columns = kOf == Of::values ? 8 : D, dv_columns = kOf == Of::keys ? 8 : D;  // the one that is not kept costs nothing
  float dk[dk_columns / 8][4] = {}, dv[dv_columns / 8][4] = {};
  const int warp_key = warp * 16, own_key = key + warp_key + lane / 4;
  for (int step = 0; step < steps; ++step) {
    if (stages == 2 && step + 1 < steps) {
      load_step(step + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    const int stage = step % stages, query = key + step % steps_of_head * kBlock;
    const bf16* q = queries + stage * kBlock * D;
    const bf16* dout = douts + stage * kBlock * D;

    // Transposed: rows are keys, columns queries.
    float s[kBlock / 8][4] = {}, dp[kBlock / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      std::uint32_t a[4], b[4];
      load_a<D>(a, keys, warp_key, k);
#pragma unroll
      for (int n = 0; n < kBlock / 16; ++n) {
        load_b_rows<D>(b, q, 16 * n, k);
        multiply_two(s[2 * n], s[2 * n + 1], a, b);
      }
      if constexpr (kOf != Of::values) {
        load_a<D>(a, values, warp_key, k);
#pragma unroll
        for (int n = 0; n < kBlock / 16; ++n) {
          load_b_rows<D>(b, dout, 16 * n, k);
          multiply_two(dp[2 * n], dp[2 * n + 1], a, b);
        }
      }
    }
    const bool masked = query < key + kBlock || (in.window > 0 && query + kBlock - key > in.window);
    const int column = 2 * (lane % 4);
    gradient_of_scores(
        s, dp, in, masked, [&](int n, int i) { return stats[stage * kBlock + 8 * n + column + i % 2].x; },
        [&](int n, int i) { return stats[stage * kBlock + 8 * n + column + i % 2].y; },
        [&](int n, int i) { return sees(query + 8 * n + column + i % 2, own_key + i / 2 * 8, in.window); });
#pragma unroll
    for (int n = 0; n < kBlock / 16; ++n) {
      std::uint32_t p[4], ds[4], b[4];
      to_a(p, s[2 * n], s[2 * n + 1]);
      to_a(ds, dp[2 * n], dp[2 * n + 1]);
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        if constexpr (kOf != Of::keys) {
          load_b_columns<D>(b, dout, 16 * n, c);
          multiply_two(dv[2 * c], dv[2 * c + 1], p, b);
        }
        if constexpr (kOf != Of::values) {
          load_b_columns<D>(b, q, 16 * n, c);
          multiply_two(dk[2 * c], dk[2 * c + 1], ds, b);
        }
      }
    }
    __syncthreads();  // nobody reads this stage any more
    if (stages == 1 && step + 1 < steps) load_step(step + 1);
  }

  if (split) {
    const auto store = [&](float* part, const auto& sums, float scale) {
      for (int half = 0; half < 2; ++half) {
        const int token = own_key + 8 * half;
        if (token >= tile.last) continue;
        float* row = part + (static_cast<std::int64_t>(blockIdx.y) * in.tokens + token) * D + 2 * (lane % 4);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) *reinterpret_cast<float2*>(row + 8 * n) = float2{sums[n][2 * half] * scale, sums[n][2 * half + 1] * scale};
      }
    };
    if constexpr (kOf != Of::keys) store(in.part_dv, dv, 1.0f);
    if constexpr (kOf != Of::values) store(in.part_dk, dk, in.scale);
  } else {
    const float one[2] = {1.0f, 1.0f}, scale[2] = {in.scale, in.scale};
    const std::int64_t columns = std::int64_t{kv_head} * D;
    if constexpr (kOf != Of::keys) store_rows<D>(dv, one, values, warp_key, in.dv + columns, in.dv_stride, key, tile.last);
    if constexpr (kOf != Of::values) store_rows<D>(dk, scale, keys, warp_key, in.dk + columns, in.dk_stride, key, tile.last);
  }
}

// ---- 3

template <int D>
struct QueryBlock {
  static constexpr int kStages = D > 128 ? 1 : 2;  // steps of keys in shared memory
  static constexpr std::int64_t kSharedBytes = sizeof(bf16) * (2 + 2 * kStages) * kBlock * D;
};

template <int D>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(BackwardArguments in) {
  constexpr int stages = QueryBlock<D>::kStages;
  const AttentionTile tile = in.tiles[blockIdx.x];
  const int row = tile.row + static_cast<int>(blockIdx.z) * kBlock;
  if (row >= tile.last) return;
  const int head = static_cast<int>(blockIdx.y), lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / kWarp;
  const bf16* k = in.k + std::int64_t{head / in.group} * D;
  const bf16* v = in.v + std::int64_t{head / in.group} * D;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* douts = queries + kBlock * D;
  bf16* keys = douts + kBlock * D;           // [stages]
  bf16* values = keys + stages * kBlock * D;  // [stages]

  const int end = lesser(row + kBlock, tile.last), begin = first_key_block(row, tile.first, in.window, kBlock);
  const auto load_step = [&](int key) {
    const int stage = (key - begin) / kBlock % stages;
    load_tile<D, kBlock>(keys + stage * kBlock * D, k, in.k_stride, key, tile.last);
    load_tile<D, kBlock>(values + stage * kBlock * D, v, in.v_stride, key, tile.last);
    copy_async_commit();
  };
  load_tile<D, kBlock>(queries, in.q + std::int64_t{head} * D, in.q_stride, row, tile.last);
  load_tile<D, kBlock>(douts, in.dout + std::int64_t{head} * D, in.dout_stride, row, tile.last);
  load_step(begin);

  const int warp_row = warp * 16, query = row + warp_row + lane / 4;
  float2 stats[2];
  float dq[D / 8][4] = {};
  for (int half = 0; half < 2; ++half) {
    const int token = query + 8 * half;
    stats[half] = token < tile.last ? in.stats[std::int64_t{head} * in.tokens + token] : float2{infinity(), 0.0f};  // then p is 0
  }
  for (int key = begin; key < end; key += kBlock) {
    if (stages == 2 && key + kBlock < end) {
      load_step(key + kBlock);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    const int stage = (key - begin) / kBlock % stages;
    const bf16* step_keys = keys + stage * kBlock * D;
    const bf16* step_values = values + stage * kBlock * D;

    float s[kBlock / 8][4] = {}, dp[kBlock / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      std::uint32_t a[4], b[4];
      load_a<D>(a, queries, warp_row, step);
#pragma unroll
      for (int n = 0; n < kBlock / 16; ++n) {
        load_b_rows<D>(b, step_keys, 16 * n, step);
        multiply_two(s[2 * n], s[2 * n + 1], a, b);
      }
      load_a<D>(a, douts, warp_row, step);
#pragma unroll
      for (int n = 0; n < kBlock / 16; ++n) {
        load_b_rows<D>(b, step_values, 16 * n, step);
        multiply_two(dp[2 * n], dp[2 * n + 1], a, b);
      }
    }
    const bool masked = key + kBlock > row + 1 || (in.window > 0 && end - key > in.window);
    gradient_of_scores(
        s, dp, in, masked, [&](int, int i) { return stats[i / 2].x; }, [&](int, int i) { return stats[i / 2].y; },
        [&](int n, int i) { return sees(query + i / 2 * 8, key + 8 * n + 2 * (lane % 4) + i % 2, in.window); });
#pragma unroll
    for (int n = 0; n < kBlock / 16; ++n) {
      std::uint32_t ds[4], b[4];
      to_a(ds, dp[2 * n], dp[2 * n + 1]);
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        load_b_columns<D>(b, step_keys, 16 * n, c);
        multiply_two(dq[2 * c], dq[2 * c + 1], ds, b);
      }
    }
    __syncthreads();  // nobody reads this stage any more
    if (stages == 1 && key + kBlock < end) load_step(key + kBlock);
  }
  const float scale[2] = {in.scale, in.scale};
  store_rows<D>(dq, scale, queries, warp_row, in.dq + std::int64_t{head} * D, in.dq_stride, row, tile.last);
}

// ---- 4

// dk and dv of a key head are the sums of its group's parts, in the order of the heads. One thread for four values of each.
template <int D>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(BackwardArguments in) {
  const std::int64_t at = 4 * (std::int64_t{blockIdx.x} * kThreads + threadIdx.x), kv_columns = std::int64_t{in.heads / in.group} * D;
  if (at >= in.tokens * kv_columns) return;
  const std::int64_t token = at / kv_columns, column = at % kv_columns, head = column / D * in.group, d = column % D;
  const auto add = [&](const float* part, bf16* to) {
    float sums[4] = {};
    for (int h = 0; h < in.group; ++h) {
      float x[4];
      load_floats4(part + ((head + h) * in.tokens + token) * D + d, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += x[i];
    }
    *reinterpret_cast<uint2*>(to) = uint2{pack(sums[0], sums[1]), pack(sums[2], sums[3])};
  };
  add(in.part_dk, in.dk + token * in.dk_stride + column);
  add(in.part_dv, in.dv + token * in.dv_stride + column);
}

template <int D>
void backward(const BackwardArguments& in, std::int64_t key_heads, cudaStream_t stream) {
  const unsigned tiles = static_cast<unsigned>(in.tile_count);
  launch(stream, dim3(blocks(ceil_div(in.tokens * in.heads * kRowLanes<D>, kThreads))), dim3(kThreads), 0, stats_kernel<D>, in);
  if (takes_warpgroups(D)) {
    backward_with_warpgroups(D, in, stream);
  } else {
    const dim3 key_grid(tiles, static_cast<unsigned>(in.part_dk != nullptr ? in.heads : key_heads), kParts);
    if constexpr (D > 128) {
      launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::values>, in);
      launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::keys>, in);
    } else {
      launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::both>, in);
    }
    launch(stream, dim3(tiles, static_cast<unsigned>(in.heads), kParts), dim3(kThreads), QueryBlock<D>::kSharedBytes, query_gradient_kernel<D>, in);
  }
  if (in.part_dk != nullptr)
    launch(stream, dim3(blocks(ceil_div(in.tokens * key_heads * D / 4, kThreads))), dim3(kThreads), 0, add_parts_kernel<D>, in);
}

}  // namespace
}  // namespace attention

std::int64_t attention_backward_workspace(const AttentionShape& shape, std::int64_t tokens) {
  const std::int64_t parts = attention::splits_heads(shape, tokens) ? 2 * shape.head_dim : 0;
  return static_cast<std::int64_t>(sizeof(float)) * shape.heads * tokens * (2 + parts) + kDeviceAlignment;
}

void attention_backward(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v, AttentionTiles tiles,
                        View<const bf16> out, const float* lse, View<const bf16> dout, View<bf16> dq, View<bf16> dk, View<bf16> dv, void* workspace,
                        cudaStream_t stream) {
  using namespace attention;
  check_shapes(shape, q, k, v);
  check_shapes(shape, dq, dk, dv);
  for (const View<const bf16>& like_q : {out, dout, View<const bf16>(dq)})
    require(like_q.rows == q.rows && like_q.cols == q.cols, "attention: a matrix like q is ", like_q.rows, " x ", like_q.cols, ", q is ", q.rows, " x ",
            q.cols);
  if (tiles.count == 0) return;
  float* parts = reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + aligned_bytes(static_cast<std::int64_t>(sizeof(float2)) * shape.heads * q.rows));
  const bool split = splits_heads(shape, q.rows);
  BackwardArguments in{};
  in.q = q.data;
  in.k = k.data;
  in.v = v.data;
  in.out = out.data;
  in.dout = dout.data;
  in.dq = dq.data;
  in.dk = dk.data;
  in.dv = dv.data;
  in.lse = lse;
  in.stats = static_cast<float2*>(workspace);
  in.part_dk = split ? parts : nullptr;
  in.part_dv = split ? parts + shape.heads * q.rows * shape.head_dim : nullptr;
  in.q_stride = q.stride;
  in.k_stride = k.stride;
  in.v_stride = v.stride;
  in.out_stride = out.stride;
  in.dout_stride = dout.stride;
  in.dq_stride = dq.stride;
  in.dk_stride = dk.stride;
  in.dv_stride = dv.stride;
  in.tokens = q.rows;
  in.tiles = tiles.tiles;
  in.tile_count = static_cast<int>(tiles.count);
  in.heads = static_cast<int>(shape.heads);
  in.group = static_cast<int>(shape.heads / shape.kv_heads);
  in.window = static_cast<int>(shape.window);
  in.scale = shape.scale;
  in.softcap = shape.softcap;
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) { backward<D>(in, shape.kv_heads, stream); });
}

}  // namespace engine::cuda
