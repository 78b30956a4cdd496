#include "ops/attention_blocks.h"
#include "ops/attention_rows.h"
#include "ops/attention_tiled.h"
#include "ops/dispatch.h"

namespace engine {

#ifdef ENGINE_X86
namespace {

// What both passes read.
struct Inputs {
  const Exec& ex;
  const Tiles& tiles;
  const AttentionShape& shape;
  const AttentionRows& rows;
  std::int64_t query_rows;  // of a query block
  ConstRows q, dout;
  const float *lse, *delta;  // [heads, tokens]
};

// Packed queries, and p and ds of one query block against one key block.
struct Scratch {
  std::byte *query, *dout;
  float *p, *ds;
  Scratch(const Inputs& in, Pieces& pieces)
      : query(pieces.take<std::byte>(in.tiles.left_bytes(in.query_rows, in.shape.head_dim))),
        dout(pieces.take<std::byte>(in.tiles.left_bytes(in.query_rows, in.shape.head_dim))), p(pieces.take<float>(in.query_rows * kKeyBlock)),
        ds(pieces.take<float>(in.query_rows * kKeyBlock)) {}

  void pack(const Inputs& in, const Block& queries) const {
    const std::int64_t d = in.shape.head_dim, token = queries.begin + queries.first;
    in.tiles.pack_left(in.q.row(token) + queries.head * d, in.q.stride, 1, queries.rows, d, query);
    in.tiles.pack_left(in.dout.row(token) + queries.head * d, in.dout.stride, 1, queries.rows, d, dout);
  }

  // p[r, j] and ds[r, j] for the packed queries and the `used` keys from j0 on.
  void fill(const Inputs& in, const Block& queries, const std::byte* keys, const std::byte* values, std::int64_t j0, std::int64_t used) const {
    const std::int64_t d = in.shape.head_dim;
    in.tiles.multiply(query, queries.rows, keys, used, d, d, in.shape.scale, p, kKeyBlock, false);
    in.tiles.multiply(dout, queries.rows, values, used, d, d, 1.0f, ds, kKeyBlock, false);
    const std::int64_t at = queries.head * in.q.rows + queries.begin + queries.first;
    in.rows.gradients({queries.rows, used, kKeyBlock, queries.first - j0, in.shape.window, in.shape.softcap}, p, ds, in.lse + at, in.delta + at,
                      in.shape.scale);
  }
};

void copy_rows(const float* source, std::int64_t rows, std::int64_t d, float* out, std::int64_t stride) {
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(source + r * d, d, out + r * stride);
}

// dq of one query block: over the key blocks it sees.
void query_gradient(const Inputs& in, const Block& block, const PackedBlocks& keys, const PackedBlocks& values, const PackedBlocks& keys_by_dim, Rows dq,
                    Pieces pieces) {
  const std::int64_t d = in.shape.head_dim;
  const Scratch s(in, pieces);
  auto* packed_ds = pieces.take<std::byte>(in.tiles.left_bytes(in.query_rows, kKeyBlock));
  auto* result = pieces.take<float>(in.query_rows * d);
  s.pack(in, block);
  const std::int64_t oldest = in.shape.window > 0 ? std::max<std::int64_t>(0, block.first - in.shape.window + 1) : 0;
  const std::int64_t start = oldest / kKeyBlock * kKeyBlock, end = block.first + block.rows;
  for (std::int64_t j0 = start; j0 < end; j0 += kKeyBlock) {
    const std::int64_t slot = block.key_slot + j0 / kKeyBlock, used = std::min(kKeyBlock, end - j0), packed = std::min(kKeyBlock, block.length - j0);
    s.fill(in, block, keys.block(slot), values.block(slot), j0, used);
    in.tiles.pack_left(s.ds, kKeyBlock, 1, block.rows, used, packed_ds);
    in.tiles.multiply(packed_ds, block.rows, keys_by_dim.block(slot), d, used, packed, 1.0f, result, d, j0 > start);
  }
  copy_rows(result, block.rows, d, dq.row(block.begin + block.first) + block.head * d, dq.stride);
}

// dk and dv of one key block: over the queries that see it, of every head of its group, in order.
void key_gradients(const Inputs& in, const Block& block, const PackedBlocks& keys, const PackedBlocks& values, Rows dk, Rows dv, Pieces pieces) {
  const std::int64_t d = in.shape.head_dim, group = in.shape.heads / in.shape.kv_heads;
  const Scratch s(in, pieces);
  auto* left = pieces.take<std::byte>(in.tiles.left_bytes(kKeyBlock, in.query_rows));
  auto* right = pieces.take<std::byte>(in.tiles.right_bytes(d, in.query_rows));
  auto* dk_sum = pieces.take<float>(kKeyBlock * d);
  auto* dv_sum = pieces.take<float>(kKeyBlock * d);
  const std::int64_t slot = block.key_slot + block.first / kKeyBlock;
  const std::int64_t end = in.shape.window > 0 ? std::min(block.length, block.first + block.rows + in.shape.window - 1) : block.length;
  bool accumulate = false;
  for (std::int64_t h = block.head * group; h < (block.head + 1) * group; ++h)
    for (std::int64_t i0 = block.first / in.query_rows * in.query_rows; i0 < end; i0 += in.query_rows) {
      const Block queries{block.begin, block.length, h, i0, std::min(in.query_rows, block.length - i0), block.key_slot};
      const std::int64_t token = queries.begin + i0;
      s.pack(in, queries);
      s.fill(in, queries, keys.block(slot), values.block(slot), block.first, block.rows);
      in.tiles.pack_left(s.p, 1, kKeyBlock, block.rows, queries.rows, left);
      in.tiles.pack_right(in.dout.row(token) + h * d, 1, in.dout.stride, d, queries.rows, right);
      in.tiles.multiply(left, block.rows, right, d, queries.rows, queries.rows, 1.0f, dv_sum, d, accumulate);
      in.tiles.pack_left(s.ds, 1, kKeyBlock, block.rows, queries.rows, left);
      in.tiles.pack_right(in.q.row(token) + h * d, 1, in.q.stride, d, queries.rows, right);
      in.tiles.multiply(left, block.rows, right, d, queries.rows, queries.rows, 1.0f, dk_sum, d, accumulate);
      accumulate = true;
    }
  copy_rows(dk_sum, block.rows, d, dk.row(block.begin + block.first) + block.head * d, dk.stride);
  copy_rows(dv_sum, block.rows, d, dv.row(block.begin + block.first) + block.head * d, dv.stride);
}

}  // namespace

void attention_backward_tiled(const Exec& ex, const GemmKernel& kernel, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                              std::span<const std::int64_t> offsets, ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv) {
  const Tiles tiles(kernel, ex.compute);
  const AttentionRows& rows = ex.isa >= Isa::avx512 ? attention_rows_avx512 : attention_rows_avx2;
  const std::int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads, tokens = q.rows;

  const std::vector<Block> key_blocks = make_blocks(offsets, shape.kv_heads, 1, kKeyBlock, false);
  const auto slots = static_cast<std::int64_t>(key_blocks.size());
  Pieces sizes;
  sizes.take<float>(shape.heads * tokens);
  for (const PackedAs as : {PackedAs::by_token, PackedAs::by_token, PackedAs::by_dim}) PackedBlocks(tiles, shape, as, slots, sizes);
  Pieces shared(ex.pool.shared_workspace(sizes.bytes()));
  auto* delta = shared.take<float>(shape.heads * tokens);
  const PackedBlocks keys(tiles, shape, PackedAs::by_token, slots, shared), values(tiles, shape, PackedAs::by_token, slots, shared),
      keys_by_dim(tiles, shape, PackedAs::by_dim, slots, shared);
  ex.pool.parallel(slots, [&](std::int64_t part, int) {
    const Block& block = key_blocks[static_cast<std::size_t>(part)];
    const std::int64_t slot = block.key_slot + block.first / kKeyBlock;
    keys.pack(block, slot, k);
    values.pack(block, slot, v);
    keys_by_dim.pack(block, slot, k);
    // delta = Σ p·dp = dout·out, for the queries at these positions of the heads that share these keys
    for (std::int64_t h = block.head * group; h < (block.head + 1) * group; ++h)
      for (std::int64_t t = block.begin + block.first; t < block.begin + block.first + block.rows; ++t)
        delta[h * tokens + t] = rows.dot(dout.row(t) + h * d, out.row(t) + h * d, d);
  });

  const Inputs in{ex, tiles, shape, rows, query_block(kernel), q, dout, lse, delta};
  Pieces scratch;
  Scratch(in, scratch);
  scratch.take<std::byte>(std::max(tiles.left_bytes(in.query_rows, kKeyBlock), tiles.left_bytes(kKeyBlock, in.query_rows)));
  scratch.take<std::byte>(tiles.right_bytes(d, in.query_rows));
  scratch.take<float>(in.query_rows * d);
  scratch.take<float>(kKeyBlock * d);
  scratch.take<float>(kKeyBlock * d);

  // One job for both kinds of blocks; each block's result is its own.
  const std::vector<Block> query_blocks = make_blocks(offsets, shape.heads, group, in.query_rows, true);
  ex.pool.parallel(slots + static_cast<std::int64_t>(query_blocks.size()), [&](std::int64_t part, int worker) {
    const Pieces pieces(ex.pool.workspace(worker, scratch.bytes()));
    if (part < slots)
      key_gradients(in, key_blocks[static_cast<std::size_t>(part)], keys, values, dk, dv, pieces);
    else
      query_gradient(in, query_blocks[static_cast<std::size_t>(part - slots)], keys, values, keys_by_dim, dq, pieces);
  });
}
#else
void attention_backward_tiled(const Exec&, const GemmKernel&, const AttentionShape&, ConstRows, ConstRows, ConstRows, std::span<const std::int64_t>,
                              ConstRows, const float*, ConstRows, Rows, Rows, Rows) {}
#endif

}  // namespace engine
