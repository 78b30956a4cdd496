// Attention over the paged cache of a 1.5B model's layer: of one new token, and of a prompt's 512 in one chunk.
#include <utility>

#include "ops/attention_decode.h"

#include "core/error.h"
#include "support/bench.h"

using namespace engine;

int main() {
  ThreadPool pool(bench::thread_count());
  const AttentionShape shape{12, 2, 128, 0.088f};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Exec ex = make_exec(pool, dtype == Dtype::f32 ? Compute::f32 : Compute::bf16);
    bench::print_header(ex, "attention_decode");
    for (const auto& [length, tokens] : {std::pair<std::int64_t, std::int64_t>{128, 1}, {2048, 1}, {16384, 1}, {512, 512}}) {
      KvPool cache{dtype, nullptr, length / 16, 16, shape.kv_heads, shape.head_dim};
      std::vector<std::uint8_t> memory(static_cast<std::size_t>(cache.element_count() * dtype_size(dtype)));
      cache.data = memory.data();
      std::vector<std::int32_t> table;
      for (std::int32_t i = 0; i < cache.blocks; ++i) table.push_back(static_cast<std::int32_t>(cache.blocks) - 1 - i);
      const std::vector<KvSequence> sequences = {{table}};
      std::vector<KvRow> rows;
      for (std::int64_t position = length - tokens; position < length; ++position) rows.push_back({0, static_cast<std::int32_t>(position)});
      const auto q = bench::values(tokens * shape.heads * shape.head_dim);
      std::vector<float> out(q.size());
      const ConstRows queries{q.data(), tokens, shape.heads * shape.head_dim};
      const double seconds = bench::best_time([&] { attention_decode(ex, shape, cache, sequences, rows, queries, {out.data(), tokens, queries.cols}); });
      const double seen = tokens == 1 ? static_cast<double>(length) : 0.5 * static_cast<double>(tokens * (tokens + 1));
      bench::print_row(ex, text(dtype_name(dtype), "  cached tokens ", length, "  rows ", tokens), seconds, 4.0 * seen * static_cast<double>(queries.cols),
                       tokens == 1 ? static_cast<double>(memory.size()) : 0);
    }
  }
}
