// spec.h: what config.json says about a decoder, as numbers the forward pass uses.
//   One parametrised decoder covers Llama 3.x, Mistral, Qwen2/2.5, Qwen3, Gemma 1, Gemma 2 and Gemma 3 (text). Both styles of
//   config.json are read: transformers 4 (`rope_scaling`, `rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
//   A model_type or a setting outside this is Code::unsupported and named, never ignored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"
#include "ops/glu.h"
#include "ops/rope.h"

namespace engine {

// The seven matrices of a block that may carry a LoRA adapter, in forward order.
enum class Projection : std::uint8_t { q, k, v, o, gate, up, down };
inline constexpr int kProjections = 7;
const char* projection_name(Projection projection) noexcept;  // "q_proj", …
// Path inside a layer: "self_attn.q_proj", "mlp.gate_proj", …
const char* projection_path(Projection projection) noexcept;

struct LayerSpec {
  std::int64_t window = 0;  // a query sees its own and the previous window − 1 positions; 0 = all of them
  int rope = 0;             // index into ModelSpec::ropes
};

struct ModelSpec {
  std::string model_type;    // "qwen2"
  std::string architecture;  // "Qwen2ForCausalLM"
  std::int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0;
  std::int64_t context = 0;  // max_position_embeddings
  float norm_eps = 1e-6f;
  float norm_offset = 0;        // Gemma multiplies by (1 + weight)
  Activation activation = Activation::silu;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;         // RMSNorm of every query and key head before RoPE
  bool sandwich_norms = false;  // Gemma 2/3: attention and MLP outputs are normalised before the residual sum
  bool scale_embeddings = false;  // Gemma: embeddings times sqrt(hidden)
  bool tied = false;            // the head is the embedding table
  float attention_scale = 0;    // multiplies q·k
  float attention_softcap = 0;  // c·tanh(s/c) of scaled scores; 0 = off
  float logit_softcap = 0;
  std::vector<RopeParameters> ropes;  // one, or global then local for Gemma 3
  std::vector<LayerSpec> layer;

  std::int64_t q_size() const noexcept { return heads * head_dim; }
  std::int64_t kv_size() const noexcept { return kv_heads * head_dim; }
  std::int64_t rows(Projection projection) const noexcept;     // outputs of the matrix
  std::int64_t columns(Projection projection) const noexcept;  // inputs
  bool has_bias(Projection projection) const noexcept;
};

// One tensor that a model of this spec has. Names are Hugging Face's.
struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
};

// "[2, 3]", for messages.
std::string shape_text(const std::vector<std::int64_t>& shape);

// Every parameter of the model in forward order; a tied head is not listed twice.
std::vector<ParameterSpec> parameters_of(const ModelSpec& spec);
std::int64_t parameter_count(const ModelSpec& spec);

// Throws corrupt when a value has the wrong type or range, unsupported as said above.
ModelSpec read_spec(const Json& config);
ModelSpec read_spec(const std::filesystem::path& model_dir);  // its config.json

}  // namespace engine
