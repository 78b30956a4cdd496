#include "cuda/infer/decoder.h"

#include <algorithm>

#include "cuda/ops/elementwise.h"
#include "cuda/ops/embed.h"
#include "cuda/ops/logits.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/ops/qkv_post.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/ops/sample.h"
#include "model/forward.h"

namespace engine::cuda {

void Decoder::attend(std::int64_t layer, const StepShape& shape, const RunnerInput& input, cudaStream_t stream) {
  const DeviceLayer& w = memory_.weights.layers[static_cast<std::size_t>(layer)];
  const StepBuffers& b = memory_.buffers;
  const QkvShape heads{spec_.heads, spec_.kv_heads, spec_.head_dim};
  const View<bf16> qkv = rows(b.qkv, shape.rows, heads.columns());
  const KvPool pool = kv_.layer(layer);
  const KvPages pages{static_cast<bf16*>(pool.data), pool.kv_heads, pool.head_dim};
  const AttentionShape attention = attention_shape(spec_, layer);
  const View<bf16> q = qkv.columns(0, spec_.q_size()), out = rows(b.attention, shape.rows, spec_.q_size());
  const auto paged = [&](std::int64_t first, bool apart) { return PagedRows{input.sequences + first, input.positions + first, input.tables, shape.table_stride, apart, shape.any_order}; };
  const auto each_single = [&](auto&& some) {  // first row, number of rows
    for (const StepShape::Run& run : shape.singles)
      for (std::int64_t first = run.first; first < run.first + run.count; first += b.attention_rows) some(first, std::min(b.attention_rows, run.first + run.count - first));
  };
  const DeviceRopes::Table& rope = ropes_.at(spec_.layer[static_cast<std::size_t>(layer)].rope);
  QkvPost post{.bias = w.qkv_bias, .q_norm = w.q_norm, .k_norm = w.k_norm, .eps = spec_.norm_eps, .offset = spec_.norm_offset,
               .cos = rope.cos, .sin = rope.sin, .rotary_dim = rope.rotary_dim, .positions = input.positions};
  if (shape.apart && shape.tiles == 0 && !rope.by_row && paged_attention_finishes(attention, post)) {
    each_single([&](std::int64_t first, std::int64_t count) {
      paged_attention_step(attention, post, qkv.row_range(first, count), paged(first, true), pages, out.row_range(first, count), shape.most_tokens, b.attention_workspace, stream);
    });
    return;
  }
  if (rope.by_row) {
    // A table by row cannot be read by position: q, k and v are finished first, then only stored.
    post.positions = input.numbers;
    qkv_post_forward(heads, post, qkv, qkv, b.head_rstd, stream);
    post = {};
  }
  qkv_post_paged(heads, post, qkv, paged(0, false), pages, stream);                                      // [R, q], keys and values to their slots
  each_single([&](std::int64_t first, std::int64_t count) {
    paged_attention_decode(attention, q.row_range(first, count), paged(first, shape.apart), pages, out.row_range(first, count), shape.most_tokens, b.attention_workspace, stream);
  });
  if (shape.tiles > 0) paged_attention_prefill(attention, q, input.tiles, shape.tiles, shape.most_tokens, input.tables, shape.table_stride, pages, out, b.prefill_workspace, stream);
}

// x += norm(sub)
void Decoder::add_sublayer(const float* norm, View<bf16> x, cudaStream_t stream) {
  const View<bf16> sub = rows(memory_.buffers.sub, x.rows, x.cols);
  rmsnorm_forward({norm, spec_.norm_eps, spec_.norm_offset}, sub, {}, sub, nullptr, stream);
  add_scaled(sub, 1.0f, x, stream);
}

void Decoder::hidden(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters, const std::function<void(Phase)>& mark, cudaStream_t stream) {
  const StepBuffers& b = memory_.buffers;
  const View<bf16> x = rows(b.x, shape.rows, spec_.hidden), qkv = rows(b.qkv, shape.rows, geometry_[Group::qkv].outputs);
  const View<bf16> attention = rows(b.attention, shape.rows, spec_.q_size()), gated = rows(b.gated, shape.rows, spec_.ffn);
  const auto norm = [this](const float* weight) { return RmsNorm{weight, spec_.norm_eps, spec_.norm_offset}; };
  products_.begin(adapters, stream);
  const View<const bf16> table{memory_.embedding, spec_.vocab, spec_.hidden};
  const float scale = embedding_scale(spec_, Compute::bf16);
  if (adapters.embeddings)
    embed_rows_forward(table, {adapters_.embeddings(), adapters.all}, input.ids, scale, x, stream);      // [R, hidden]
  else
    embed_forward(table, input.ids, scale, x, stream);
  for (std::int64_t layer = 0; layer < spec_.layers; ++layer) {
    const DeviceLayer& w = memory_.weights.layers[static_cast<std::size_t>(layer)];
    products_(layer, Group::qkv, x, norm(w.input_norm), qkv, Products::Onto::nothing);                   // [R, q + k + v]
    mark(Phase::products);
    attend(layer, shape, input, stream);                                                                 // [R, heads·head_dim]
    mark(Phase::attention);
    if (spec_.sandwich_norms) {
      products_(layer, Group::o, attention, {}, rows(b.sub, shape.rows, spec_.hidden), Products::Onto::nothing);
      add_sublayer(w.attention_norm, x, stream);
    } else {
      products_(layer, Group::o, attention, {}, x, Products::Onto::y);                                   // [R, hidden]
    }
    products_.gated(layer, x, norm(w.mlp_norm), gated);                                                  // [R, ffn]
    if (spec_.sandwich_norms) {
      products_(layer, Group::down, gated, {}, rows(b.sub, shape.rows, spec_.hidden), Products::Onto::nothing);
      add_sublayer(w.mlp_output_norm, x, stream);
    } else {
      products_(layer, Group::down, gated, {}, x, Products::Onto::y);                                    // [R, hidden]
    }
  }
  mark(Phase::products);
}

void Decoder::choose(const StepShape& shape, const RunnerInput& input, std::int64_t first, std::int64_t count, cudaStream_t stream) {
  const StepBuffers& b = memory_.buffers;
  View<bf16> last = rows(b.x, shape.rows, spec_.hidden).row_range(shape.all_wanted ? first : 0, count);
  if (!shape.all_wanted) {
    last = rows(b.last, count, spec_.hidden);
    gather_rows(rows(b.x, shape.rows, spec_.hidden), input.wanted + first, last, stream);                // [n, hidden]
  }
  const View<float> logits{b.logits, count, spec_.vocab};
  std::vector<HeadRows> heads;  // of these rows, counted from them
  for (const HeadRows& of : shape.heads) {
    const std::int64_t from = std::max(of.first, first), to = std::min(of.first + of.count, first + count);
    if (from < to) heads.push_back({from - first, to - from, of.head});
  }
  products_.head(last, {memory_.weights.final_norm, spec_.norm_eps, spec_.norm_offset}, heads, logits, stream);  // [n, vocab]
  if (shape.choices) sample(logits, input.settings + first, input.token_positions + first, b.tokens + first, b.logprobs + first, b.sample_workspace, stream);
  if (shape.scores) log_probs(logits, input.targets + first, input.scored + first, b.scores + first, stream);
}

}  // namespace engine::cuda
