// forward.h: the decoder from token ids to the last hidden state.   T tokens of one or more sequences.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "model/adapted_linear.h"
#include "model/pass.h"
#include "ops/attention.h"

namespace engine {

// What a layer computes and its backward reads. Pointers into an arena; those the architecture lacks stay empty.
struct LayerActivations {
  Rows attention_in;   // [T, hidden]  input_norm(x)
  Rows q_raw, k_raw;   // [T, heads·head_dim], [T, kv_heads·head_dim]  before the q/k norms; otherwise q and k themselves
  Rows q, k, v;        // as attention sees them
  Rows attention;      // [T, heads·head_dim]
  Rows attention_out;  // [T, hidden]  before attention_norm
  Rows middle;         // [T, hidden]  x + attention
  Rows mlp_in;         // [T, hidden]  mlp_norm(middle)
  Rows gate, up;       // [T, ffn]
  Rows gated;          // [T, ffn]     act(gate) · up
  Rows mlp_out;        // [T, hidden]  before mlp_output_norm
  float *input_rstd = nullptr, *attention_rstd = nullptr, *mlp_rstd = nullptr, *mlp_out_rstd = nullptr;  // [T]
  float *q_rstd = nullptr, *k_rstd = nullptr;                                                             // [T·heads], [T·kv_heads]
  float* lse = nullptr;                                                                                   // [heads, T]
  std::array<AdapterActivations, kProjections> adapted{};  // of the projections that the adapter has in any layer

  const AdapterActivations& of(Projection projection) const noexcept { return adapted[static_cast<std::size_t>(projection)]; }
};

enum class Keep : std::uint8_t {
  for_backward,  // every activation has memory of its own
  nothing,       // buffers are shared between stages; only the layer's output survives
};
LayerActivations take_activations(Arena& arena, const ModelSpec& spec, std::int64_t tokens, const LoraAdapter* adapter, Keep keep);
// Bytes that keeping them for the backward takes, alignment aside.
std::int64_t activation_bytes(const ModelSpec& spec, std::int64_t tokens, const LoraAdapter* adapter);

// How a layer's queries meet keys and values: over packed sequences, or over a cache.
class AttentionOver {
 public:
  virtual ~AttentionOver() = default;
  // q [T, heads·head_dim], k and v [T, kv_heads·head_dim], rotated → out like q; lse [heads, T] when not null.
  virtual void attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float* lse) = 0;
};

class PackedAttention final : public AttentionOver {
 public:
  explicit PackedAttention(std::span<const std::int64_t> offsets) : offsets_(offsets) {}
  void attend(const Exec& ex, std::int64_t layer, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, Rows out, float* lse) override;

 private:
  std::span<const std::int64_t> offsets_;
};

AttentionShape attention_shape(const ModelSpec& spec, std::int64_t layer);

// √hidden where a family scales its embeddings, else 1. Rounded to bf16 in bf16 compute, as such a model stores it.
float embedding_scale(const ModelSpec& spec, Compute compute);

// x [T, hidden]: the tokens' rows of the table, the adapters' own where they have one.
void embed_tokens(const Pass& pass, std::span<const std::uint32_t> ids, Rows x);

// The head that an adapter's rows (null: the base's) are given to.
Matrix head_of(const Pass& pass, const LoraAdapter* adapter);

// y = layer(x), both [T, hidden] and distinct. The pass's ropes must be prepared. y may be empty when only activations are wanted: the last
// product is then left out.
void layer_forward(const Pass& pass, std::int64_t layer, ConstRows x, LayerActivations& a, AttentionOver& attention, Rows y);

// The whole decoder without keeping activations: ids → hidden states before the final norm, [T, hidden]. Checks the cancel flag between layers.
Rows hidden_states(const Pass& pass, std::span<const std::uint32_t> ids, AttentionOver& attention);

// Positions within their sequences and the sequences' lengths, [T] each, in the arena, given to the pass's ropes.
void prepare_packed_ropes(const Pass& pass, const PackedTokens& tokens);

// Throws invalid: offsets that do not rise from 0 to T, an id outside the vocabulary (its position is told, not its value).
void check_packed(const ModelSpec& spec, const PackedTokens& tokens);

// Hidden rows [R, hidden] as the head reads them.
void final_norm(const Pass& pass, ConstRows hidden, Rows normed);

// logits [R, vocab] of hidden rows [R, hidden]: final norm, head, soft cap. `normed` [R, hidden] receives the normed rows. The segments say which
// adapter each row has: the pass's tell it for tokens, these for rows.
void head_logits(const Pass& pass, std::span<const LoraSegment> segments, ConstRows hidden, Rows normed, Rows logits);

}  // namespace engine
