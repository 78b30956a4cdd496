#include "ops/attention_decode.h"

#include <algorithm>

#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

// Two sequences whose blocks lie shuffled in one pool, written token by token from packed keys and values.
struct Cache {
  std::vector<std::uint8_t> memory;
  KvPool pool;
  std::vector<std::int32_t> first_table, second_table;
  std::vector<KvSequence> sequences;
  std::vector<KvRow> rows;

  Cache(const AttentionShape& shape, Dtype dtype, std::int64_t first, std::int64_t second) {
    pool = {dtype, nullptr, 40, 16, shape.kv_heads, shape.head_dim};
    memory.assign(static_cast<std::size_t>(pool.element_count() * dtype_size(dtype)), 0xff);
    pool.data = memory.data();
    for (std::int32_t i = 0; i * 16 < first; ++i) first_table.push_back(37 - 2 * i);
    for (std::int32_t i = 0; i * 16 < second; ++i) second_table.push_back(2 * i);
    sequences = {{first_table}, {second_table}};
    for (std::int32_t t = 0; t < first; ++t) rows.push_back({0, t});
    for (std::int32_t t = 0; t < second; ++t) rows.push_back({1, t});
  }
};

const std::vector<AttentionShape> kShapes = {
    {4, 2, 32, 0.18f}, {6, 2, 128, 0.088f}, {3, 3, 20, 0.2f}, {4, 1, 64, 0.125f, 30}, {2, 1, 64, 0.125f, 0, 3.0f}, {2, 1, 256, 0.06f, 1}};

}  // namespace

TEST("attention over a paged cache equals attention over the packed sequences") {
  for (const AttentionShape& shape : kShapes)
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const Isa isa : runnable_isas()) {
        const std::int64_t tokens = 65 + 40, q_cols = shape.heads * shape.head_dim, kv_cols = shape.kv_heads * shape.head_dim;
        const auto q = random_values(tokens * q_cols, 1), k = random_values(tokens * kv_cols, 2), v = random_values(tokens * kv_cols, 3);
        const Compute compute = dtype == Dtype::bf16 ? Compute::bf16 : Compute::f32;
        Cache cache(shape, dtype, 65, 40);
        const ConstRows keys{k.data(), tokens, kv_cols}, values{v.data(), tokens, kv_cols}, queries{q.data(), tokens, q_cols};
        kv_write(exec(isa), cache.pool, cache.sequences, cache.rows, keys, values);
        auto out = poisoned(tokens * q_cols), expected = poisoned(tokens * q_cols);
        attention_decode(exec(isa, compute), shape, cache.pool, cache.sequences, cache.rows, queries, {out.data(), tokens, q_cols});
        const std::vector<std::int64_t> offsets = {0, 65, 105};
        attention_forward(exec(Isa::scalar, compute), shape, queries, keys, values, offsets, {expected.data(), tokens, q_cols}, nullptr);
        CHECK_ERROR(relative_error(out, expected), compute == Compute::f32 ? 2e-6 : 2e-3, describe(isa, compute), " head_dim ", shape.head_dim);
      }
}

TEST("a row over the cache has the same bits alone, in a chunk and beside other sequences") {
  for (const AttentionShape& shape : kShapes)
    for (const Isa isa : runnable_isas()) {
      const std::int64_t tokens = 65 + 40, q_cols = shape.heads * shape.head_dim, kv_cols = shape.kv_heads * shape.head_dim;
      const auto q = random_values(tokens * q_cols, 1), k = random_values(tokens * kv_cols, 2), v = random_values(tokens * kv_cols, 3);
      Cache cache(shape, Dtype::f32, 65, 40);
      kv_write(exec(isa), cache.pool, cache.sequences, cache.rows, {k.data(), tokens, kv_cols}, {v.data(), tokens, kv_cols});
      auto together = poisoned(tokens * q_cols);
      attention_decode(exec(isa), shape, cache.pool, cache.sequences, cache.rows, {q.data(), tokens, q_cols}, {together.data(), tokens, q_cols});
      for (const std::int64_t r : {0, 17, 64, 65, 104}) {
        auto alone = poisoned(q_cols);
        attention_decode(exec(isa), shape, cache.pool, cache.sequences, std::span(cache.rows).subspan(static_cast<std::size_t>(r), 1),
                         {q.data() + r * q_cols, 1, q_cols}, {alone.data(), 1, q_cols});
        CHECK(std::equal(alone.begin(), alone.end(), together.begin() + r * q_cols));
      }
    }
}

TEST("the cache refuses positions and blocks outside of it before it touches memory") {
  const AttentionShape shape{1, 1, 8, 1.0f};
  Cache cache(shape, Dtype::f32, 16, 16);
  std::vector<float> x(8);
  const ConstRows one{x.data(), 1, 8};
  const Rows out{x.data(), 1, 8};
  for (const KvRow row : {KvRow{0, 16}, KvRow{0, -1}, KvRow{2, 0}, KvRow{-1, 0}}) {
    const std::vector<KvRow> rows = {row};
    CHECK_THROWS(invalid, kv_write(exec(Isa::scalar), cache.pool, cache.sequences, rows, one, one));
    CHECK_THROWS(invalid, attention_decode(exec(Isa::scalar), shape, cache.pool, cache.sequences, rows, one, out));
  }
  cache.first_table[0] = 40;
  cache.sequences = {{cache.first_table}};
  CHECK_THROWS(invalid, kv_write(exec(Isa::scalar), cache.pool, cache.sequences, std::vector<KvRow>{{0, 0}}, one, one));
}

}  // namespace engine
