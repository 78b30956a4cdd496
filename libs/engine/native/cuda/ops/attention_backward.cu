// attention_backward.cu: dq, dk and dv in three launches. (attention.h; the formulas are those of FlashAttention-2, arXiv:2307.08691, algorithm 2)
//   With p = exp(s − lse), dp = dout·vᵀ, delta = Σ out·dout (= Σ p·dp) and ds = p·(dp − delta)·scale·cap':
//     dv = pᵀ·dout      dk = dsᵀ·q      dq = ds·k
//   1. delta, one warp for each token and head.
//   2. dk and dv: a block owns 64 keys of a key head and goes over the queries that see them, of every head of the group, in order. It computes the
//      transposed scores, so that pᵀ and dsᵀ are already the left operands of the last two products and never leave the registers.
//   3. dq: a block owns 64 queries of a head and goes over the keys they see.
//   Scores are computed twice (7 products instead of 5), which is the price of adding every gradient in one fixed order without atomics.
//   With few tokens there are too few key blocks to fill the device: then each query head of a group has blocks of its own, which write fp32 sums for
//   its key head, and a fourth launch adds the group's. Which of the two is taken depends on the shape alone.
#include "cuda/ops/attention.h"
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
// Below this many key blocks heads are not grouped: about two blocks for each multiprocessor of a large device.
inline constexpr std::int64_t kEnoughBlocks = 256;

bool splits_heads(const AttentionShape& shape, std::int64_t tokens) {
  return shape.heads > shape.kv_heads && tokens / kBlock * shape.kv_heads < kEnoughBlocks;
}

struct BackwardArguments {
  const bf16 *q, *k, *v, *out, *dout;
  bf16 *dq, *dk, *dv;
  const float* lse;    // [heads, tokens]
  float* delta;        // [heads, tokens]
  float *part_dk, *part_dv;  // [heads, tokens, head_dim] when heads are split, else null
  std::int64_t q_stride, k_stride, v_stride, out_stride, dout_stride, dq_stride, dk_stride, dv_stride, tokens;
  const AttentionTile* tiles;
  int heads, group, window;
  float scale, softcap;
};

// p (in place of s) and ds (in place of dp) of one element; lse in units of log 2.
ENGINE_DEVICE void gradient_of_score(float& s, float& dp, float lse, float delta, bool seen, const BackwardArguments& in) {
  float x = s * in.scale, slope = in.scale;
  if (in.softcap > 0) {
    const float t = tanhf(x / in.softcap);
    x = in.softcap * t;
    slope *= 1.0f - t * t;
  }
  s = seen ? exp2_fast(x * kLog2e - lse) : 0.0f;
  dp = s * (dp - delta) * slope;
}

// ---- 1

template <int D>
__global__ void __launch_bounds__(kThreads) delta_kernel(BackwardArguments in) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;  // token · heads + head
  if (at >= in.tokens * in.heads) return;
  const std::int64_t token = at / in.heads, head = at % in.heads;
  const int lane = static_cast<int>(lane_id());
  const bf16* out = in.out + token * in.out_stride + head * D;
  const bf16* dout = in.dout + token * in.dout_stride + head * D;
  float sum = 0;
  for (int i = 2 * lane; i < D; i += 2 * kWarp) {
    const std::uint32_t a = *reinterpret_cast<const std::uint32_t*>(out + i), b = *reinterpret_cast<const std::uint32_t*>(dout + i);
    sum += widen_low(a) * widen_low(b) + widen_high(a) * widen_high(b);
  }
  sum = warp_sum(sum);
  if (lane == 0) in.delta[head * in.tokens + token] = sum;
}

// ---- 2

// Which gradients a block of the second launch keeps in registers: both fit up to head_dim 128.
enum class Of : std::uint8_t { both, values, keys };

template <int D>
struct KeyBlock {
  static constexpr int kStages = D > 128 ? 1 : 2;  // steps of queries in shared memory
  static constexpr std::int64_t kSharedBytes = sizeof(bf16) * (2 + 2 * kStages) * kBlock * D + sizeof(float) * 2 * kStages * kBlock;
};

template <int D, Of kOf>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(BackwardArguments in) {
  constexpr int stages = KeyBlock<D>::kStages;
  const AttentionTile tile = in.tiles[blockIdx.x];
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
  float* lse = reinterpret_cast<float*>(douts + stages * kBlock * D);  // [stages][kBlock], in units of log 2
  float* delta = lse + stages * kBlock;

  const int end = in.window > 0 ? lesser(tile.last, key + kBlock + in.window - 1) : tile.last;
  const int steps_of_head = (end - key + kBlock - 1) / kBlock, steps = steps_of_head * heads;
  const auto load_step = [&](int step) {
    const std::int64_t head = first_head + step / steps_of_head;
    const int query = key + step % steps_of_head * kBlock, stage = step % stages;
    load_tile<D, kBlock>(queries + stage * kBlock * D, in.q + head * D, in.q_stride, query, tile.last);
    load_tile<D, kBlock>(douts + stage * kBlock * D, in.dout + head * D, in.dout_stride, query, tile.last);
    if (threadIdx.x < kBlock) {
      const int token = query + static_cast<int>(threadIdx.x);
      const std::int64_t at = head * in.tokens + token;
      lse[stage * kBlock + static_cast<int>(threadIdx.x)] = token < tile.last ? in.lse[at] * kLog2e : infinity();  // then p is 0
      delta[stage * kBlock + static_cast<int>(threadIdx.x)] = token < tile.last ? in.delta[at] : 0.0f;
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
#pragma unroll
    for (int n = 0; n < kBlock / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * (lane % 4) + i % 2;
        gradient_of_score(s[n][i], dp[n][i], lse[stage * kBlock + column], delta[stage * kBlock + column],
                          !masked || sees(query + column, own_key + i / 2 * 8, in.window), in);
      }
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
    const auto store = [&](float* part, const auto& sums) {
      for (int half = 0; half < 2; ++half) {
        const int token = own_key + 8 * half;
        if (token >= tile.last) continue;
        float* row = part + (static_cast<std::int64_t>(blockIdx.y) * in.tokens + token) * D + 2 * (lane % 4);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) *reinterpret_cast<float2*>(row + 8 * n) = float2{sums[n][2 * half], sums[n][2 * half + 1]};
      }
    };
    if constexpr (kOf != Of::keys) store(in.part_dv, dv);
    if constexpr (kOf != Of::values) store(in.part_dk, dk);
  } else {
    const float one[2] = {1.0f, 1.0f};
    const std::int64_t columns = std::int64_t{kv_head} * D;
    if constexpr (kOf != Of::keys) store_rows<D>(dv, one, values, warp_key, in.dv + columns, in.dv_stride, key, tile.last);
    if constexpr (kOf != Of::values) store_rows<D>(dk, one, keys, warp_key, in.dk + columns, in.dk_stride, key, tile.last);
  }
}

// dk and dv of a key head are the sums of its group's parts, in the order of the heads. One thread for two values.
template <int D>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(BackwardArguments in) {
  const std::int64_t at = 2 * (std::int64_t{blockIdx.x} * kThreads + threadIdx.x), kv_columns = std::int64_t{in.heads / in.group} * D;
  if (at >= in.tokens * kv_columns) return;
  const std::int64_t token = at / kv_columns, column = at % kv_columns, head = column / D * in.group, d = column % D;
  float2 dk{0, 0}, dv{0, 0};
  for (int h = 0; h < in.group; ++h) {
    const std::int64_t from = ((head + h) * in.tokens + token) * D + d;
    const float2 a = *reinterpret_cast<const float2*>(in.part_dk + from), b = *reinterpret_cast<const float2*>(in.part_dv + from);
    dk = float2{dk.x + a.x, dk.y + a.y};
    dv = float2{dv.x + b.x, dv.y + b.y};
  }
  *reinterpret_cast<std::uint32_t*>(in.dk + token * in.dk_stride + column) = pack(dk.x, dk.y);
  *reinterpret_cast<std::uint32_t*>(in.dv + token * in.dv_stride + column) = pack(dv.x, dv.y);
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
  float lse[2], delta[2], dq[D / 8][4] = {};
  for (int half = 0; half < 2; ++half) {
    const int token = query + 8 * half;
    const std::int64_t at = std::int64_t{head} * in.tokens + token;
    lse[half] = token < tile.last ? in.lse[at] * kLog2e : infinity();  // then p is 0
    delta[half] = token < tile.last ? in.delta[at] : 0.0f;
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
#pragma unroll
    for (int n = 0; n < kBlock / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        gradient_of_score(s[n][i], dp[n][i], lse[i / 2], delta[i / 2],
                          !masked || sees(query + i / 2 * 8, key + 8 * n + 2 * (lane % 4) + i % 2, in.window), in);
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
  const float one[2] = {1.0f, 1.0f};
  store_rows<D>(dq, one, queries, warp_row, in.dq + std::int64_t{head} * D, in.dq_stride, row, tile.last);
}

template <int D>
void backward(const BackwardArguments& in, std::int64_t tiles, std::int64_t key_heads, cudaStream_t stream) {
  launch(stream, dim3(blocks(ceil_div(in.tokens * in.heads, kWarps))), dim3(kThreads), 0, delta_kernel<D>, in);
  const dim3 key_grid(blocks(tiles), static_cast<unsigned>(in.part_dk != nullptr ? in.heads : key_heads), kParts);
  if constexpr (D > 128) {
    launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::values>, in);
    launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::keys>, in);
  } else {
    launch(stream, key_grid, dim3(kThreads), KeyBlock<D>::kSharedBytes, key_gradient_kernel<D, Of::both>, in);
  }
  if (in.part_dk != nullptr)
    launch(stream, dim3(blocks(ceil_div(in.tokens * key_heads * D / 2, kThreads))), dim3(kThreads), 0, add_parts_kernel<D>, in);
  launch(stream, dim3(blocks(tiles), static_cast<unsigned>(in.heads), kParts), dim3(kThreads), QueryBlock<D>::kSharedBytes,
         query_gradient_kernel<D>, in);
}

}  // namespace
}  // namespace attention

std::int64_t attention_backward_workspace(const AttentionShape& shape, std::int64_t tokens) {
  const std::int64_t parts = attention::splits_heads(shape, tokens) ? 2 * shape.head_dim : 0;
  return static_cast<std::int64_t>(sizeof(float)) * shape.heads * tokens * (1 + parts) + kDeviceAlignment;
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
  float* parts = reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + aligned_bytes(static_cast<std::int64_t>(sizeof(float)) * shape.heads * q.rows));
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
  in.delta = static_cast<float*>(workspace);
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
  in.heads = static_cast<int>(shape.heads);
  in.group = static_cast<int>(shape.heads / shape.kv_heads);
  in.window = static_cast<int>(shape.window);
  in.scale = shape.scale;
  in.softcap = shape.softcap;
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) { backward<D>(in, tiles.count, shape.kv_heads, stream); });
}

}  // namespace engine::cuda
