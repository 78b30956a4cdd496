#include "model/forward.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/bf16.h"
#include "core/error.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embed.h"
#include "ops/glu.h"
#include "ops/linear.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"

namespace engine {
namespace {

RmsNorm token_norm(const ModelSpec& spec, const float* weight) { return {weight, spec.hidden, spec.norm_eps, spec.norm_offset}; }
RmsNorm head_norm(const ModelSpec& spec, const float* weight) { return {weight, spec.head_dim, spec.norm_eps, spec.norm_offset}; }

void copy_rows(ConstRows from, Rows to) {
  std::memcpy(to.data, from.data, static_cast<std::size_t>(from.rows * from.cols) * sizeof(float));
}

Rows row_range(Rows x, std::int64_t first, std::int64_t count) { return {x.row(first), count, x.cols, x.stride}; }

}  // namespace

LayerActivations take_activations(Arena& arena, const ModelSpec& spec, std::int64_t tokens, const LoraAdapter* adapter, Keep keep) {
  const bool all = keep == Keep::for_backward;
  LayerActivations a;
  a.attention_in = arena.rows(tokens, spec.hidden);
  a.q_raw = arena.rows(tokens, spec.q_size());
  a.k_raw = arena.rows(tokens, spec.kv_size());
  a.q = all && spec.qk_norm ? arena.rows(tokens, spec.q_size()) : a.q_raw;
  a.k = all && spec.qk_norm ? arena.rows(tokens, spec.kv_size()) : a.k_raw;
  a.v = arena.rows(tokens, spec.kv_size());
  a.attention = arena.rows(tokens, spec.q_size());
  a.middle = arena.rows(tokens, spec.hidden);
  a.mlp_in = all ? arena.rows(tokens, spec.hidden) : a.attention_in;
  a.gate = arena.rows(tokens, spec.ffn);
  a.up = arena.rows(tokens, spec.ffn);
  a.gated = all ? arena.rows(tokens, spec.ffn) : a.gate;
  if (spec.sandwich_norms) {
    a.attention_out = arena.rows(tokens, spec.hidden);
    a.mlp_out = all ? arena.rows(tokens, spec.hidden) : a.attention_out;
  }
  if (!all) return a;
  a.input_rstd = arena.take<float>(tokens);
  a.mlp_rstd = arena.take<float>(tokens);
  if (spec.sandwich_norms) {
    a.attention_rstd = arena.take<float>(tokens);
    a.mlp_out_rstd = arena.take<float>(tokens);
  }
  if (spec.qk_norm) {
    a.q_rstd = arena.take<float>(tokens * spec.heads);
    a.k_rstd = arena.take<float>(tokens * spec.kv_heads);
  }
  a.lse = arena.take<float>(tokens * spec.heads);
  if (adapter == nullptr) return a;
  for (int p = 0; p < kProjections; ++p) {
    const auto projection = static_cast<Projection>(p);
    const std::int64_t rank = adapter->widest_rank(projection);
    if (rank == 0) continue;
    AdapterActivations& kept = a.adapted[static_cast<std::size_t>(p)];
    kept.shrunk = arena.take<float>(tokens * rank);
    if (adapter->config().dora) kept.directed = arena.take<float>(tokens * spec.rows(projection));
  }
  return a;
}

std::int64_t activation_bytes(const ModelSpec& spec, std::int64_t tokens, const LoraAdapter* adapter) {
  std::int64_t floats = 3 * spec.hidden + 2 * spec.q_size() + 2 * spec.kv_size() + 3 * spec.ffn + 2 + spec.heads;
  if (spec.qk_norm) floats += spec.q_size() + spec.kv_size() + spec.heads + spec.kv_heads;
  if (spec.sandwich_norms) floats += 2 * spec.hidden + 2;
  if (adapter != nullptr)
    for (int p = 0; p < kProjections; ++p) {
      const auto projection = static_cast<Projection>(p);
      floats += adapter->widest_rank(projection);
      if (adapter->config().dora && adapter->widest_rank(projection) > 0) floats += spec.rows(projection);
    }
  return floats * tokens * static_cast<std::int64_t>(sizeof(float));
}

void PackedAttention::attend(const Exec& ex, std::int64_t, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float* lse) {
  attention_forward(ex, shape, q, k, v, offsets_, out, lse);
}

AttentionShape attention_shape(const ModelSpec& spec, std::int64_t layer) {
  return {spec.heads, spec.kv_heads, spec.head_dim, spec.attention_scale, spec.layer[static_cast<std::size_t>(layer)].window, spec.attention_softcap};
}

float embedding_scale(const ModelSpec& spec, Compute compute) {
  if (!spec.scale_embeddings) return 1.0f;
  const float root = std::sqrt(static_cast<float>(spec.hidden));
  return compute == Compute::bf16 ? round_to_bf16(root) : root;
}

void embed_tokens(const Pass& pass, std::span<const std::uint32_t> ids, Rows x) {
  const float scale = embedding_scale(pass.spec, pass.ex.compute);
  for (const LoraSegment& segment : pass.adapters) {
    const Matrix table = segment.adapter == nullptr ? pass.weights.embedding : segment.adapter->embedding().value_or(pass.weights.embedding);
    embed_forward(pass.ex, table, ids.subspan(static_cast<std::size_t>(segment.first), static_cast<std::size_t>(segment.count)), scale,
                  row_range(x, segment.first, segment.count));
  }
}

Matrix head_of(const Pass& pass, const LoraAdapter* adapter) {
  return adapter == nullptr ? pass.weights.head : adapter->head().value_or(pass.weights.head);
}

void layer_forward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, AttentionOver& attention, Rows y) {
  const Exec& ex = pass.ex;
  const ModelSpec& spec = pass.spec;
  const LayerWeights& w = pass.layer(layer);
  const auto run = [&](Projection p, ConstRows in, Rows out, bool accumulate = false) { project(pass, layer, p, in, out, a.of(p), accumulate); };

  rmsnorm_forward(ex, token_norm(spec, w.input_norm), x, a.attention_in, a.input_rstd);               // [T, hidden]
  run(Projection::q, a.attention_in, a.q_raw);                                                        // [T, heads·head_dim]
  run(Projection::k, a.attention_in, a.k_raw);                                                        // [T, kv_heads·head_dim]
  run(Projection::v, a.attention_in, a.v);                                                            // [T, kv_heads·head_dim]
  if (spec.qk_norm) {
    rmsnorm_forward(ex, head_norm(spec, w.q_norm), a.q_raw, a.q, a.q_rstd);
    rmsnorm_forward(ex, head_norm(spec, w.k_norm), a.k_raw, a.k, a.k_rstd);
  }
  const Rotation rotation = pass.ropes.at(pass.layer_spec(layer).rope);
  rope_apply(ex, *rotation.table, rotation.positions, spec.head_dim, a.q);
  rope_apply(ex, *rotation.table, rotation.positions, spec.head_dim, a.k);
  attention.attend(ex, layer, attention_shape(spec, layer), a.q, a.k, a.v, a.attention, a.lse);       // [T, heads·head_dim]

  copy_rows(x, a.middle);
  if (spec.sandwich_norms) {
    run(Projection::o, a.attention, a.attention_out);                                                 // [T, hidden]
    rmsnorm_forward(ex, token_norm(spec, w.attention_norm), a.attention_out, a.mlp_in, a.attention_rstd);
    add_scaled(ex, a.mlp_in, 1.0f, a.middle);                                                         // mlp_in is free until the next norm
  } else {
    run(Projection::o, a.attention, a.middle, true);                                                  // [T, hidden]
  }

  rmsnorm_forward(ex, token_norm(spec, w.mlp_norm), a.middle, a.mlp_in, a.mlp_rstd);                  // [T, hidden]
  run(Projection::gate, a.mlp_in, a.gate);                                                            // [T, ffn]
  run(Projection::up, a.mlp_in, a.up);                                                                // [T, ffn]
  glu_forward(ex, spec.activation, a.gate, a.up, a.gated);                                            // [T, ffn]
  if (spec.sandwich_norms) {
    run(Projection::down, a.gated, a.mlp_out);                                                        // [T, hidden]
    const Arena::Scope scope(pass.arena);
    const Rows normed = y.data != nullptr ? y : pass.arena.rows(x.rows, spec.hidden);  // a recomputation needs the norm's 1/rms, not its output
    rmsnorm_forward(ex, token_norm(spec, w.mlp_output_norm), a.mlp_out, normed, a.mlp_out_rstd);      // [T, hidden]
    if (y.data == nullptr) return;
    add_scaled(ex, a.middle, 1.0f, y);
  } else {
    if (y.data == nullptr) return project_activations(pass, layer, Projection::down, a.gated, a.of(Projection::down));
    copy_rows(a.middle, y);
    run(Projection::down, a.gated, y, true);                                                          // [T, hidden]
  }
}

Rows hidden_states(const Pass& pass, std::span<const std::uint32_t> ids, AttentionOver& attention) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  Rows x = pass.arena.rows(tokens, pass.spec.hidden), y = pass.arena.rows(tokens, pass.spec.hidden);
  LayerActivations a = take_activations(pass.arena, pass.spec, tokens, nullptr, Keep::nothing);
  embed_tokens(pass, ids, x);                                                                           // [T, hidden]
  for (std::int64_t layer = 0; layer < pass.spec.layers; ++layer) {
    check_cancelled(pass.cancel);
    layer_forward(pass, layer, x, a, attention, y);                                                    // [T, hidden]
    std::swap(x, y);
  }
  return x;
}

void prepare_packed_ropes(const Pass& pass, const PackedTokens& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.ids.size());
  auto* positions = pass.arena.take<std::int32_t>(count);
  auto* lengths = pass.arena.take<std::int32_t>(count);
  for (std::size_t sequence = 0; sequence + 1 < tokens.offsets.size(); ++sequence) {
    const std::int64_t first = tokens.offsets[sequence], length = tokens.offsets[sequence + 1] - first;
    for (std::int64_t i = 0; i < length; ++i) {
      positions[first + i] = static_cast<std::int32_t>(i);
      lengths[first + i] = static_cast<std::int32_t>(length);
    }
  }
  pass.ropes.prepare({positions, static_cast<std::size_t>(count)}, {lengths, static_cast<std::size_t>(count)});
}

void check_packed(const ModelSpec& spec, const PackedTokens& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.ids.size());
  require(tokens.offsets.size() >= 2 && tokens.offsets.front() == 0 && tokens.offsets.back() == count, "row offsets must start at 0 and end at the ", count,
          " tokens given");
  for (std::size_t i = 0; i + 1 < tokens.offsets.size(); ++i)
    require(tokens.offsets[i] < tokens.offsets[i + 1], "row ", i, " is empty or its offsets do not rise");
  require(count <= INT32_MAX, "a batch of ", count, " tokens is too long; use at most 2147483647");
  for (std::int64_t i = 0; i < count; ++i)
    require(tokens.ids[static_cast<std::size_t>(i)] < spec.vocab, "the token id at position ", i, " is outside the vocabulary of ", spec.vocab);
}

void final_norm(const Pass& pass, ConstRows hidden, Rows normed) {
  rmsnorm_forward(pass.ex, token_norm(pass.spec, pass.weights.final_norm), hidden, normed, nullptr);
}

void head_logits(const Pass& pass, std::span<const LoraSegment> segments, ConstRows hidden, Rows normed, Rows logits) {
  final_norm(pass, hidden, normed);                                                                   // [R, hidden]
  // Neighbours with the same head share one product, which reads it once.
  for (std::size_t i = 0; i < segments.size();) {
    const Matrix head = head_of(pass, segments[i].adapter);
    const std::int64_t first = segments[i].first;
    std::int64_t count = 0;
    for (; i < segments.size() && head_of(pass, segments[i].adapter).data == head.data; ++i) count += segments[i].count;
    linear(pass.ex, row_range(normed, first, count), head, nullptr, row_range(logits, first, count));  // [n, vocab]
  }
  if (pass.spec.logit_softcap > 0) softcap_logits(pass.ex, logits, pass.spec.logit_softcap);
}

}  // namespace engine
