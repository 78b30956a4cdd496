#include "ops/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/bf16.h"
#include "core/error.h"
#include "ops/attention_decode_rows.h"
#include "ops/decode_rows.h"
#include "ops/dispatch.h"

namespace engine {
namespace {

float element(Dtype dtype, const void* data, std::int64_t i) {
  return dtype == Dtype::bf16 ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
}

void scores(const float* q, Dtype dtype, const void* keys, std::int64_t count, std::int64_t d, float scale, float* s) {
  for (std::int64_t j = 0; j < count; ++j) {
    double sum = 0;
    for (std::int64_t c = 0; c < d; ++c) sum += double{q[c]} * element(dtype, keys, j * d + c);
    s[j] = scale * static_cast<float>(sum);
  }
}

void softcap(float* s, std::int64_t n, float cap) {
  for (std::int64_t j = 0; j < n; ++j) s[j] = cap * std::tanh(s[j] / cap);
}

float softmax(float* s, std::int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < n; ++j) largest = std::max(largest, s[j]);
  double sum = 0;
  for (std::int64_t j = 0; j < n; ++j) sum += s[j] = std::exp(s[j] - largest);
  return static_cast<float>(sum);
}

void add_values(const float* p, Dtype dtype, const void* values, std::int64_t count, std::int64_t d, float* out) {
  for (std::int64_t j = 0; j < count; ++j)
    for (std::int64_t c = 0; c < d; ++c) out[c] = std::fma(p[j], element(dtype, values, j * d + c), out[c]);
}

void require_rows(const KvPool& pool, std::span<const KvSequence> sequences, std::span<const KvRow> rows) {
  require(pool.dtype == Dtype::f32 || pool.dtype == Dtype::bf16, "a key/value cache of ", dtype_name(pool.dtype), "; use f32 or bf16");
  require(pool.block_tokens > 0 && pool.kv_heads > 0 && pool.head_dim > 0, "a key/value cache with blocks of ", pool.block_tokens, " tokens, ",
          pool.kv_heads, " heads of ", pool.head_dim);
  for (const KvRow& row : rows) {
    require(row.sequence >= 0 && static_cast<std::size_t>(row.sequence) < sequences.size(), "a row names sequence ", row.sequence, " of ",
            sequences.size());
    const auto table = sequences[static_cast<std::size_t>(row.sequence)].block_table;
    require(row.position >= 0 && row.position / pool.block_tokens < static_cast<std::int64_t>(table.size()), "position ", row.position,
            " is outside a block table of ", table.size());
  }
  for (const KvSequence& sequence : sequences)
    for (const std::int32_t block : sequence.block_table) require(block >= 0 && block < pool.blocks, "block ", block, " of a cache of ", pool.blocks);
}

void* address(const KvPool& pool, std::int64_t element) { return static_cast<char*>(pool.data) + element * dtype_size(pool.dtype); }

}  // namespace

const AttentionDecodeRows attention_decode_rows_scalar = {scores, softcap, softmax, add_values};

void kv_write(const Exec&, const KvPool& pool, std::span<const KvSequence> sequences, std::span<const KvRow> rows, ConstRows k, ConstRows v) {
  require_rows(pool, sequences, rows);
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t d = pool.head_dim;
  require(k.rows == count && v.rows == count && k.cols == pool.kv_heads * d && v.cols == k.cols, "keys ", k.rows, "x", k.cols, " and values ", v.rows,
          "x", v.cols, " do not fit ", count, " rows of ", pool.kv_heads, " heads of ", d);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto table = sequences[static_cast<std::size_t>(rows[r].sequence)].block_table;
    const std::int64_t block = table[static_cast<std::size_t>(rows[r].position / pool.block_tokens)], slot = rows[r].position % pool.block_tokens;
    for (std::int64_t h = 0; h < pool.kv_heads; ++h) {
      from_f32(pool.dtype, k.row(static_cast<std::int64_t>(r)) + h * d, d, address(pool, pool.element(block, h, 0, slot)));
      from_f32(pool.dtype, v.row(static_cast<std::int64_t>(r)) + h * d, d, address(pool, pool.element(block, h, 1, slot)));
    }
  }
}

void attention_decode(const Exec& ex, const AttentionShape& shape, const KvPool& pool, std::span<const KvSequence> sequences,
                      std::span<const KvRow> rows, ConstRows q, Rows out) {
  require_rows(pool, sequences, rows);
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t d = pool.head_dim, group = shape.kv_heads > 0 ? shape.heads / shape.kv_heads : 0;
  require(shape.kv_heads == pool.kv_heads && shape.head_dim == d && group * shape.kv_heads == shape.heads, "attention of ", shape.heads, " heads of ",
          shape.head_dim, " over a cache of ", pool.kv_heads, " heads of ", d);
  require(q.rows == count && out.rows == count && q.cols == shape.heads * d && out.cols == q.cols, "queries ", q.rows, "x", q.cols, " and output ",
          out.rows, "x", out.cols, " do not fit ", count, " rows of ", shape.heads, " heads of ", d);
  const AttentionDecodeRows& kernel = ENGINE_ROWS(ex.isa, attention_decode_rows);
  const DecodeRows& convert = ENGINE_ROWS(ex.isa, decode_rows);
  // One part is one row and one key head; the `group` query heads that share its keys are taken together while those are in cache.
  ex.pool.parallel(count * shape.kv_heads, [&](std::int64_t part, int worker) {
    const std::int64_t r = part / shape.kv_heads, kv = part % shape.kv_heads;
    const KvRow row = rows[static_cast<std::size_t>(r)];
    const auto table = sequences[static_cast<std::size_t>(row.sequence)].block_table;
    const std::int64_t start = shape.window > 0 ? std::max<std::int64_t>(0, row.position - shape.window + 1) : 0;
    const std::int64_t keys = row.position - start + 1;
    auto* scores = static_cast<float*>(ex.pool.workspace(worker, static_cast<std::size_t>(group * (keys + d) * 4)));  // [group, keys]
    float* queries = scores + group * keys;                                                                          // [group, d]
    // body(offset of the run among the keys, its length, pool block, first slot)
    const auto for_runs = [&](auto body) {
      for (std::int64_t at = start; at <= row.position;) {
        const std::int64_t slot = at % pool.block_tokens, n = std::min(pool.block_tokens - slot, row.position - at + 1);
        body(at - start, n, std::int64_t{table[static_cast<std::size_t>(at / pool.block_tokens)]}, slot);
        at += n;
      }
    };
    const float* source = q.row(r) + kv * group * d;
    if (ex.compute == Compute::bf16)
      convert.round_bf16(source, group * d, queries);
    else
      std::copy_n(source, group * d, queries);
    for_runs([&](std::int64_t at, std::int64_t n, std::int64_t block, std::int64_t slot) {
      const void* run = address(pool, pool.element(block, kv, 0, slot));
      for (std::int64_t h = 0; h < group; ++h) kernel.scores(queries + h * d, pool.dtype, run, n, d, shape.scale, scores + h * keys + at);
    });
    float* results = out.row(r) + kv * group * d;
    std::fill_n(results, group * d, 0.0f);
    for (std::int64_t h = 0; h < group; ++h) {
      float* s = scores + h * keys;
      if (shape.softcap > 0) kernel.softcap(s, keys, shape.softcap);
      queries[h] = 1.0f / kernel.softmax(s, keys);  // the queries are done with: their place keeps what normalizes each head
      if (ex.compute == Compute::bf16) convert.round_bf16(s, keys, s);
    }
    for_runs([&](std::int64_t at, std::int64_t n, std::int64_t block, std::int64_t slot) {
      const void* run = address(pool, pool.element(block, kv, 1, slot));
      for (std::int64_t h = 0; h < group; ++h) kernel.add_values(scores + h * keys + at, pool.dtype, run, n, d, results + h * d);
    });
    for (std::int64_t h = 0; h < group; ++h)
      for (std::int64_t c = 0; c < d; ++c) results[h * d + c] *= queries[h];
  });
}

}  // namespace engine
