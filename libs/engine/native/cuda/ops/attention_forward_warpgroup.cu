// attention_forward_warpgroup.cu: attention of packed sequences with the products of warpgroups. (attention.h, attention_forward_warpgroup.cuh)
//   Blocks with most work start first, all heads of a tile side by side.
#include "cuda/ops/attention_forward_warpgroup.cuh"
#include "cuda/runtime/launch.h"

namespace engine::cuda::attention {
namespace {

static_assert(kGroupQueries == kAttentionTile);

template <int D>
__global__ void __launch_bounds__(kGroupThreads, 1) forward_kernel(ForwardArguments in) {
#ifdef ENGINE_WARPGROUP_PRODUCTS
  const AttentionTile of = in.tiles[static_cast<int>(blockIdx.x) / in.heads];
  if (of.row >= of.last) return;
  const int head = static_cast<int>(blockIdx.x) % in.heads, lane = static_cast<int>(lane_id());
  const bf16* k = in.k + std::int64_t{head / in.group} * D;
  const bf16* v = in.v + std::int64_t{head / in.group} * D;
  bf16* queries = static_cast<bf16*>(block_shared());
  bf16* keys = queries + kGroupQueries * D;     // [2]
  bf16* values = keys + 2 * kGroupKeys * D;     // [2]

  const int end = lesser(of.row + kGroupQueries, of.last), begin = first_key_block(of.row, of.first, in.window, kGroupKeys);
  const GroupTile tile{of.row, of.last, begin, end, (end - begin + kGroupKeys - 1) / kGroupKeys};
  const auto load = [&](bf16* to, const bf16* from, std::int64_t stride, int step) {
    if (step < tile.steps) load_swizzled<D, kGroupKeys>(to + step % 2 * kGroupKeys * D, from, stride, begin + step * kGroupKeys, of.last);
  };
  load_swizzled<D, kGroupQueries>(queries, in.q + std::int64_t{head} * D, in.q_stride, of.row, of.last);
  float o[D / 8][4] = {};
  Softmax softmax{{-infinity(), -infinity()}, {0, 0}, {0, 0}};
  forward_groups<D>({in.window, in.scale, in.softcap}, tile, queries, keys, values, [&](int step) { load(keys, k, in.k_stride, step); },
                    [&](int step) { load(values, v, in.v_stride, step); }, o, softmax);

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_total(softmax, half);
    inverse[half] = 1.0f / total;
    const int token = of.row + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4 + 8 * half;
    if (in.lse != nullptr && lane % 4 == 0 && token < of.last)
      in.lse[std::int64_t{head} * in.tokens + token] = softmax.most[half] * (score_units(in.scale, in.softcap) / kLog2e) + logf(total);
  }
  store_swizzled<D, kGroupQueries>(o, inverse, queries, own_group_row(), in.out + std::int64_t{head} * D, in.out_stride, of.row, of.last);
#endif
}

}  // namespace

void forward_with_warpgroups(std::int64_t head_dim, const ForwardArguments& in, std::int64_t tiles, cudaStream_t stream) {
  const dim3 grid(blocks(tiles * in.heads));
  if (head_dim == 64)
    launch(stream, grid, dim3(kGroupThreads), kForwardGroupsShared<64>, forward_kernel<64>, in);
  else
    launch(stream, grid, dim3(kGroupThreads), kForwardGroupsShared<128>, forward_kernel<128>, in);
}

}  // namespace engine::cuda::attention
