#include <cmath>
#include <limits>

#include "ops/attention_blocks.h"
#include "ops/attention_rows.h"
#include "ops/attention_tiled.h"
#include "ops/dispatch.h"
#include "ops/elementwise_rows.h"

namespace engine {

#ifdef ENGINE_X86
void attention_forward_tiled(const Exec& ex, const GemmKernel& kernel, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                             std::span<const std::int64_t> offsets, Rows out, float* lse) {
  const Tiles tiles(kernel, ex.compute);
  const AttentionRows& rows_kernel = ex.isa >= Isa::avx512 ? attention_rows_avx512 : attention_rows_avx2;
  const ElementwiseRows& elementwise = ENGINE_ROWS(ex.isa, elementwise_rows);
  const std::int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads, size = query_block(kernel);

  // Keys and values are packed once; every query block of every head of the group reads them.
  const std::vector<Block> key_blocks = make_blocks(offsets, shape.kv_heads, 1, kKeyBlock, false);
  const auto slots = static_cast<std::int64_t>(key_blocks.size());
  Pieces sizes;
  PackedBlocks(tiles, shape, PackedAs::by_token, slots, sizes);
  PackedBlocks(tiles, shape, PackedAs::by_dim, slots, sizes);
  Pieces shared(ex.pool.shared_workspace(sizes.bytes()));
  const PackedBlocks keys(tiles, shape, PackedAs::by_token, slots, shared), values(tiles, shape, PackedAs::by_dim, slots, shared);
  ex.pool.parallel(slots, [&](std::int64_t part, int) {
    const Block& block = key_blocks[static_cast<std::size_t>(part)];
    const std::int64_t slot = block.key_slot + block.first / kKeyBlock;
    keys.pack(block, slot, k);
    values.pack(block, slot, v);
  });

  struct Scratch {
    std::byte *query, *probability;
    float *scores, *result, *rescale;
    RunningSoftmax* running;
    Scratch(const Tiles& t, std::int64_t block, std::int64_t dim, Pieces& pieces)
        : query(pieces.take<std::byte>(t.left_bytes(block, dim))), probability(pieces.take<std::byte>(t.left_bytes(block, kKeyBlock))),
          scores(pieces.take<float>(block * kKeyBlock)), result(pieces.take<float>(block * dim)), rescale(pieces.take<float>(block)), running(pieces.take<RunningSoftmax>(block)) {}
  };
  Pieces scratch_sizes;
  Scratch(tiles, size, d, scratch_sizes);

  const std::vector<Block> query_blocks = make_blocks(offsets, shape.heads, group, size, true);
  ex.pool.parallel(static_cast<std::int64_t>(query_blocks.size()), [&](std::int64_t part, int worker) {
    const Block& block = query_blocks[static_cast<std::size_t>(part)];
    Pieces pieces(ex.pool.workspace(worker, scratch_sizes.bytes()));
    const Scratch s(tiles, size, d, pieces);
    tiles.pack_left(q.row(block.begin + block.first) + block.head * d, q.stride, 1, block.rows, d, s.query);
    for (std::int64_t r = 0; r < block.rows; ++r) s.running[r] = {-std::numeric_limits<float>::infinity(), 0.0f};

    const std::int64_t oldest = shape.window > 0 ? std::max<std::int64_t>(0, block.first - shape.window + 1) : 0;
    const std::int64_t start = oldest / kKeyBlock * kKeyBlock, end = block.first + block.rows;
    for (std::int64_t j0 = start; j0 < end; j0 += kKeyBlock) {
      const std::int64_t slot = block.key_slot + j0 / kKeyBlock, used = std::min(kKeyBlock, end - j0), packed = std::min(kKeyBlock, block.length - j0);
      tiles.multiply(s.query, block.rows, keys.block(slot), used, d, d, shape.scale, s.scores, kKeyBlock, false);
      rows_kernel.probabilities({block.rows, used, kKeyBlock, block.first - j0, shape.window, shape.softcap}, s.scores, s.running, s.rescale);
      for (std::int64_t r = 0; r < block.rows && j0 > start; ++r)
        if (s.rescale[r] != 1.0f) elementwise.scale(s.result + r * d, s.rescale[r], d, s.result + r * d);
      tiles.pack_left(s.scores, kKeyBlock, 1, block.rows, used, s.probability);
      tiles.multiply(s.probability, block.rows, values.block(slot), d, used, packed, 1.0f, s.result, d, j0 > start);
    }
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const std::int64_t token = block.begin + block.first + r;
      elementwise.scale(s.result + r * d, 1.0f / s.running[r].sum, d, out.row(token) + block.head * d);
      if (lse != nullptr) lse[block.head * q.rows + token] = s.running[r].largest + std::log(s.running[r].sum);
    }
  });
}
#else
void attention_forward_tiled(const Exec&, const GemmKernel&, const AttentionShape&, ConstRows, ConstRows, ConstRows, std::span<const std::int64_t>, Rows,
                             float*) {}
#endif

}  // namespace engine
