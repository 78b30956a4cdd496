#include <algorithm>
#include <atomic>
#include <string>

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/attention_launch.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace attention {
namespace {
std::atomic<Kernels> wanted_kernels{Kernels::fitting};
}

void use_kernels(Kernels kernels) { wanted_kernels = kernels; }

bool takes_warpgroups(std::int64_t head_dim) {
  return (head_dim == 64 || head_dim == 128) && wanted_kernels == Kernels::fitting && has_warpgroup_products();
}

void check_shapes(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v) {
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "attention: ", shape.heads, " heads do not share ", shape.kv_heads, " key heads evenly");
  require(q.cols == shape.heads * shape.head_dim, "attention: q has ", q.cols, " columns, not ", shape.heads, " heads of ", shape.head_dim);
  for (const View<const bf16>& kv : {k, v})
    require(kv.rows == q.rows && kv.cols == shape.kv_heads * shape.head_dim, "attention: k and v are ", kv.rows, " x ", kv.cols, ", not ", q.rows, " x ",
            shape.kv_heads, " heads of ", shape.head_dim);
}

void check_paged(const AttentionShape& shape, View<const bf16> q, const KvPages& pages, View<const bf16> out) {
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "attention: ", shape.heads, " heads do not share ", shape.kv_heads, " key heads evenly");
  require(q.cols == shape.heads * shape.head_dim, "attention: q has ", q.cols, " columns, not ", shape.heads, " heads of ", shape.head_dim);
  require(out.rows == q.rows && out.cols == q.cols, "attention: out is ", out.rows, " x ", out.cols, ", q is ", q.rows, " x ", q.cols);
  require(pages.kv_heads == shape.kv_heads && pages.head_dim == shape.head_dim, "attention: the pages are of ", pages.kv_heads, " heads of ", pages.head_dim,
          ", not ", shape.kv_heads, " of ", shape.head_dim);
}

}  // namespace attention

std::vector<PagedChunk> paged_tiles(std::span<const PagedChunk> chunks) {
  constexpr auto most = static_cast<std::int32_t>(kPagedTile);
  std::vector<PagedChunk> tiles;
  for (const PagedChunk& chunk : chunks)
    for (std::int32_t row = 0; row < chunk.rows; row += most)
      tiles.push_back({chunk.first_row + row, std::min(most, chunk.rows - row), chunk.sequence, chunk.position + row});
  std::stable_sort(tiles.begin(), tiles.end(), [](const PagedChunk& a, const PagedChunk& b) { return a.position > b.position; });
  return tiles;
}

std::vector<AttentionTile> attention_tiles(std::span<const std::int64_t> offsets) {
  std::vector<AttentionTile> tiles;
  for (std::size_t i = 1; i < offsets.size(); ++i)
    for (std::int64_t row = offsets[i - 1]; row < offsets[i]; row += kAttentionTile)
      tiles.push_back({static_cast<std::int32_t>(row), static_cast<std::int32_t>(offsets[i - 1]), static_cast<std::int32_t>(offsets[i]), 0});
  std::stable_sort(tiles.begin(), tiles.end(), [](const AttentionTile& a, const AttentionTile& b) { return a.row - a.first > b.row - b.first; });
  return tiles;
}

std::int64_t most_attention_tiles(std::int64_t tokens, std::int64_t sequences) {
  return tokens / kAttentionTile + std::min(tokens, sequences);
}

}  // namespace engine::cuda
