// attention_forward.cu: attention of packed sequences, one block for each tile of queries and head. (attention.h, attention_forward.cuh)
#include "cuda/ops/attention.h"
#include "cuda/ops/attention_forward.cuh"
#include "cuda/ops/attention_launch.h"
#include "cuda/runtime/error.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace attention {
namespace {

template <int D>
__global__ void __launch_bounds__(kThreads) forward_kernel(ForwardArguments in) {
  const AttentionTile tile = in.tiles[blockIdx.x];
  const int row = tile.row + static_cast<int>(blockIdx.z) * Forward<D>::kRows;  // the block's first query
  if (row >= tile.last) return;
  const std::int64_t head = blockIdx.y, kv_head = static_cast<int>(blockIdx.y) / in.group;
  const bf16* k = in.k + kv_head * D;
  const bf16* v = in.v + kv_head * D;
  const ForwardTile part{in.q + head * D, in.out + head * D, in.lse == nullptr ? nullptr : in.lse + head * in.tokens, in.q_stride, in.out_stride, row, tile.first, tile.last};
  forward<D>({in.window, in.scale, in.softcap}, part, [&](bf16* to, int key) { load_tile<D, kKeys>(to, k, in.k_stride, key, tile.last); },
             [&](bf16* to, int key) { load_tile<D, kKeys>(to, v, in.v_stride, key, tile.last); });
}

}  // namespace
}  // namespace attention

void attention_forward(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v, AttentionTiles tiles, View<bf16> out,
                       float* lse, cudaStream_t stream) {
  using namespace attention;
  check_shapes(shape, q, k, v);
  require(out.rows == q.rows && out.cols == q.cols, "attention: out is ", out.rows, " x ", out.cols, ", q is ", q.rows, " x ", q.cols);
  if (tiles.count == 0) return;
  const ForwardArguments in{q.data,   k.data,   v.data,     out.data, lse, q.stride, k.stride, v.stride, out.stride, q.rows, tiles.tiles,
                            static_cast<int>(shape.heads), static_cast<int>(shape.heads / shape.kv_heads), static_cast<int>(shape.window), shape.scale, shape.softcap};
  if (takes_warpgroups(shape.head_dim)) return forward_with_warpgroups(shape.head_dim, in, tiles.count, stream);
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) {
    using Kernel = Forward<D>;
    launch(stream, dim3(blocks(tiles.count), static_cast<unsigned>(shape.heads), kAttentionTile / Kernel::kRows), dim3(kThreads),
           Kernel::kSharedBytes, forward_kernel<D>, in);
  });
}

}  // namespace engine::cuda
