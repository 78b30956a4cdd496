#include "ops/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/bf16.h"
#include "core/error.h"
#include "ops/attention_decode_rows.h"
#include "ops/decode_rows.h"
#include "ops/dispatch.h"

namespace engine {
namespace {

constexpr std::int64_t kRowsTogether = 4;  // of one sequence: they share a run of the cache as fp32

void scores(const float* q, const float* keys, std::int64_t count, std::int64_t d, float scale, float* s) {
  for (std::int64_t j = 0; j < count; ++j) {
    double sum = 0;
    for (std::int64_t c = 0; c < d; ++c) sum += double{q[c]} * keys[j * d + c];
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

void add_values(const float* p, const float* values, std::int64_t count, std::int64_t d, float* out) {
  for (std::int64_t j = 0; j < count; ++j)
    for (std::int64_t c = 0; c < d; ++c) out[c] = std::fma(p[j], values[j * d + c], out[c]);
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

// Neighbouring rows of one sequence, each a position further than the one before it.
struct RowGroup {
  std::int64_t first, count;
};

std::vector<RowGroup> group_rows(std::span<const KvRow> rows) {
  std::vector<RowGroup> groups;
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(rows.size()); ++r) {
    const KvRow row = rows[static_cast<std::size_t>(r)];
    if (!groups.empty() && groups.back().count < kRowsTogether) {
      const KvRow before = rows[static_cast<std::size_t>(r - 1)];
      if (before.sequence == row.sequence && before.position + 1 == row.position) {
        ++groups.back().count;
        continue;
      }
    }
    groups.push_back({r, 1});
  }
  return groups;
}

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
  const std::vector<RowGroup> row_groups = group_rows(rows);
  // One part is a group of rows and one key head; their query heads that share its keys are taken together while those are in cache.
  ex.pool.parallel(static_cast<std::int64_t>(row_groups.size()) * shape.kv_heads, [&](std::int64_t part, int worker) {
    const RowGroup together = row_groups[static_cast<std::size_t>(part / shape.kv_heads)];
    const std::int64_t kv = part % shape.kv_heads, lines = together.count * group;  // a line is one query head of one row
    const KvRow oldest = rows[static_cast<std::size_t>(together.first)];
    const auto table = sequences[static_cast<std::size_t>(oldest.sequence)].block_table;
    const auto start_of = [&](std::int64_t position) { return shape.window > 0 ? std::max<std::int64_t>(0, position - shape.window + 1) : 0; };
    const std::int64_t start = start_of(oldest.position), end = oldest.position + together.count, keys = end - start;
    auto* scores = static_cast<float*>(ex.pool.workspace(worker, static_cast<std::size_t>((lines * (keys + d) + pool.block_tokens * d) * 4)));  // [lines, keys]
    float *queries = scores + lines * keys, *widened = queries + lines * d;  // [lines, d], [block_tokens, d]
    // body(row of the group, its keys' first and count, theirs of the cache) for every run of every row, block by block.
    const auto for_runs = [&](int which, auto body) {
      for (std::int64_t at = start; at < end;) {
        const std::int64_t slot = at % pool.block_tokens, n = std::min(pool.block_tokens - slot, end - at);
        const void* run = address(pool, pool.element(table[static_cast<std::size_t>(at / pool.block_tokens)], kv, which, slot));
        if (pool.dtype == Dtype::bf16) convert.widen_bf16(run, n * d, widened);
        const float* values = pool.dtype == Dtype::bf16 ? widened : static_cast<const float*>(run);
        for (std::int64_t i = 0; i < together.count; ++i) {
          const std::int64_t position = oldest.position + i, from = std::max(at, start_of(position)), to = std::min(at + n, position + 1);
          if (from < to) body(i, from, to - from, values + (from - at) * d);
        }
        at += n;
      }
    };
    for (std::int64_t i = 0; i < together.count; ++i) {
      const float* source = q.row(together.first + i) + kv * group * d;
      if (ex.compute == Compute::bf16)
        convert.round_bf16(source, group * d, queries + i * group * d);
      else
        std::copy_n(source, group * d, queries + i * group * d);
    }
    for_runs(0, [&](std::int64_t i, std::int64_t from, std::int64_t n, const float* run) {
      for (std::int64_t line = i * group; line < (i + 1) * group; ++line)
        kernel.scores(queries + line * d, run, n, d, shape.scale, scores + line * keys + from - start);
    });
    for (std::int64_t i = 0; i < together.count; ++i) {
      const std::int64_t position = oldest.position + i, first = start_of(position), seen = position + 1 - first;
      std::fill_n(out.row(together.first + i) + kv * group * d, group * d, 0.0f);
      for (std::int64_t line = i * group; line < (i + 1) * group; ++line) {
        float* s = scores + line * keys + first - start;
        if (shape.softcap > 0) kernel.softcap(s, seen, shape.softcap);
        queries[line] = 1.0f / kernel.softmax(s, seen);  // the queries are done with: their place keeps what normalizes each line
        if (ex.compute == Compute::bf16) convert.round_bf16(s, seen, s);
      }
    }
    for_runs(1, [&](std::int64_t i, std::int64_t from, std::int64_t n, const float* run) {
      for (std::int64_t h = 0; h < group; ++h)
        kernel.add_values(scores + (i * group + h) * keys + from - start, run, n, d, out.row(together.first + i) + (kv * group + h) * d);
    });
    for (std::int64_t line = 0; line < lines; ++line) {
      float* result = out.row(together.first + line / group) + (kv * group + line % group) * d;
      for (std::int64_t c = 0; c < d; ++c) result[c] *= queries[line];
    }
  });
}

}  // namespace engine
