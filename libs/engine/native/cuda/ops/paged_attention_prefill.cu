// paged_attention_prefill.cu: chunks of prompts, one block for each tile of queries and head; keys are gathered through the table. (attention_forward.cuh)
#include <algorithm>

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_forward.cuh"
#include "cuda/ops/attention_launch.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace attention {
namespace {

static_assert(kPagedTile == kAttentionTile);

template <int D>
__global__ void __launch_bounds__(kThreads) prefill_kernel(PagedForwardArguments in) {
  allow_next();
  wait_for_previous();
  const PagedChunk tile = in.tiles[blockIdx.x];
  const int row = tile.position + static_cast<int>(blockIdx.z) * Forward<D>::kRows, last = tile.position + tile.rows;  // the block's first query
  if (row >= last) return;
  const std::int64_t head = blockIdx.y, shift = std::int64_t{tile.first_row} - tile.position;
  const std::int32_t* table = in.tables + tile.sequence * in.table_stride;
  const std::int64_t page_elements = std::int64_t{in.kv_heads} * 2 * kPageTokens * D;
  const bf16* pool = in.pages + static_cast<int>(blockIdx.y) / in.group * std::int64_t{2 * kPageTokens * D};
  const auto gather = [&](bf16* to, const bf16* from, int key) {
    constexpr int chunks = D / 8, page = static_cast<int>(kPageTokens);
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * chunks; i += kThreads) {
      const int r = i / chunks, chunk = i % chunks, token = key + r;
      const bool inside = token < last;
      copy_async16(to + chunk_at<D>(r, chunk), from + table[(inside ? token : key) / page] * page_elements + token % page * D + chunk * 8, inside ? 16 : 0);
    }
  };
  const ForwardTile part{in.q + head * D + shift * in.q_stride, in.out + head * D + shift * in.out_stride, nullptr, in.q_stride, in.out_stride, row, 0, last};
  forward<D>(in.scores, part, [&](bf16* to, int key) { gather(to, pool, key); }, [&](bf16* to, int key) { gather(to, pool + kPageTokens * D, key); });
}

}  // namespace
}  // namespace attention

std::int64_t paged_prefill_workspace(const AttentionShape& shape) {
  return attention::takes_warpgroups(shape.head_dim) ? attention::prefill_workspace_with_warpgroups(shape.head_dim) : 0;
}

void paged_attention_prefill(const AttentionShape& shape, View<const bf16> q, const PagedChunk* tiles, std::int64_t tile_count, std::int64_t most_tokens,
                             const std::int32_t* tables, std::int64_t table_stride, const KvPages& pages, View<bf16> out, void* workspace, cudaStream_t stream) {
  using namespace attention;
  check_paged(shape, q, pages, out);
  if (tile_count == 0) return;
  const PagedForwardArguments in{q.data, out.data, q.stride, out.stride, tiles, tables, table_stride, pages.data, static_cast<int>(shape.kv_heads),
                                 static_cast<int>(shape.heads / shape.kv_heads), {static_cast<int>(shape.window), shape.scale, shape.softcap}};
  const std::int64_t keys = shape.window > 0 ? std::min(most_tokens, shape.window + 2 * kPagedTile) : most_tokens;
  if (takes_warpgroups(shape.head_dim) && keys <= kMostGroupPages * kPageTokens)
    return prefill_with_warpgroups(shape.head_dim, in, tile_count, keys, workspace, stream);
  for_head_dim(shape.head_dim, [&]<int D>(HeadDim<D>) {
    using Kernel = Forward<D>;
    launch_chained(stream, dim3(blocks(tile_count), static_cast<unsigned>(shape.heads), kPagedTile / Kernel::kRows), dim3(kThreads), Kernel::kSharedBytes,
                   prefill_kernel<D>, in);
  });
}

}  // namespace engine::cuda
