#include "export/gguf_plan.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "export/gguf_settings.h"

namespace engine {
namespace {

constexpr std::array<std::pair<std::string_view, GgufRecipe>, 5> kRecipes = {{{"f32", GgufRecipe::f32},
                                                                              {"f16", GgufRecipe::f16},
                                                                              {"q8_0", GgufRecipe::q8_0},
                                                                              {"q4_0", GgufRecipe::q4_0},
                                                                              {"q4_k_m", GgufRecipe::q4_k_m}}};

// "model.layers.3.mlp.up_proj.weight" → "blk.3.ffn_up.weight".
std::string llama_name(const ModelSpec& spec, const std::string& source) {
  if (source == "model.embed_tokens.weight") return "token_embd.weight";
  if (source == "model.norm.weight") return "output_norm.weight";
  if (source == "lm_head.weight") return "output.weight";
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kParts = {{{"input_layernorm", "attn_norm"},
                                                                                     {"self_attn.q_proj", "attn_q"},
                                                                                     {"self_attn.k_proj", "attn_k"},
                                                                                     {"self_attn.v_proj", "attn_v"},
                                                                                     {"self_attn.o_proj", "attn_output"},
                                                                                     {"self_attn.q_norm", "attn_q_norm"},
                                                                                     {"self_attn.k_norm", "attn_k_norm"},
                                                                                     {"mlp.gate_proj", "ffn_gate"},
                                                                                     {"mlp.up_proj", "ffn_up"},
                                                                                     {"mlp.down_proj", "ffn_down"},
                                                                                     {"post_feedforward_layernorm", "post_ffw_norm"}}};
  constexpr std::string_view kLayers = "model.layers.";
  const std::size_t layer_end = source.find('.', kLayers.size()), kind = source.rfind('.');
  const std::string layer = source.substr(kLayers.size(), layer_end - kLayers.size()), part = source.substr(layer_end + 1, kind - layer_end - 1);
  std::string_view name;
  for (const auto& [theirs, ours] : kParts)
    if (theirs == part) name = ours;
  // The norm between attention and MLP: of the MLP's input, or of the attention's output where norms sit on both sides.
  if (part == "post_attention_layernorm") name = spec.sandwich_norms ? "post_attention_norm" : "ffn_norm";
  if (part == "pre_feedforward_layernorm") name = "ffn_norm";
  require(Code::internal, !name.empty(), "no GGUF name for ", source);
  return text("blk.", layer, ".", name, source.substr(kind));
}

std::int64_t layer_of(const std::string& name) { return name.starts_with("blk.") ? std::stoll(name.substr(4)) : -1; }

// The layers whose v and down keep six bits.
bool more_bits(std::int64_t layer, std::int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

GgmlType wanted_type(const ModelSpec& spec, GgufRecipe recipe, const std::string& name) {
  const bool head = name == "output.weight" || (spec.tied && name == "token_embd.weight");
  switch (recipe) {
    case GgufRecipe::f32: return GgmlType::f32;
    case GgufRecipe::f16: return GgmlType::f16;
    case GgufRecipe::q8_0: return GgmlType::q8_0;
    case GgufRecipe::q4_0: return head ? GgmlType::q6_k : GgmlType::q4_0;
    case GgufRecipe::q4_k_m: break;
  }
  if (head) return GgmlType::q6_k;
  const bool sensitive = name.ends_with(".attn_v.weight") || name.ends_with(".ffn_down.weight");
  if (sensitive && more_bits(layer_of(name), spec.layers)) return GgmlType::q6_k;
  if (name.ends_with(".attn_v.weight") && spec.model_type == "llama" && spec.layers == 80 && spec.heads != spec.kv_heads) return GgmlType::q6_k;
  return GgmlType::q4_k;
}

GgmlType fitting_type(GgmlType wanted, std::int64_t cols) {
  const auto fits = [&](GgmlType type) { return cols % ggml_layout(type).values == 0; };
  if (fits(wanted)) return wanted;
  if (wanted == GgmlType::q4_k && fits(GgmlType::q5_0)) return GgmlType::q5_0;
  if (wanted == GgmlType::q6_k && fits(GgmlType::q8_0)) return GgmlType::q8_0;
  return GgmlType::f16;
}

// Row (2i + half) of a head in the file is row (half · head/2 + i) of the source.
template <bool to_file>
void permute_heads(float* values, std::int64_t rows, std::int64_t cols, std::int64_t head) {
  std::vector<float> copy(static_cast<std::size_t>(head * cols));
  for (std::int64_t first = 0; first < rows; first += head) {
    float* block = values + first * cols;
    std::copy_n(block, head * cols, copy.data());
    for (std::int64_t i = 0; i < head / 2; ++i)
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t in_file = 2 * i + half, in_source = half * (head / 2) + i;
        const std::int64_t from = to_file ? in_source : in_file, to = to_file ? in_file : in_source;
        std::copy_n(copy.data() + from * cols, cols, block + to * cols);
      }
  }
}

GgufTensorPlan plan_tensor(const ModelSpec& spec, const std::string& architecture, GgufRecipe recipe, const ParameterSpec& parameter) {
  GgufTensorPlan plan;
  plan.name = llama_name(spec, parameter.name);
  plan.source = parameter;
  const bool vector = parameter.shape.size() == 1;
  plan.type = vector ? GgmlType::f32 : fitting_type(wanted_type(spec, recipe, plan.name), parameter.shape.back());
  const bool q = parameter.name.find("self_attn.q_proj.") != std::string::npos, k = parameter.name.find("self_attn.k_proj.") != std::string::npos;
  if (architecture == "llama" && (q || k)) plan.interleave = spec.head_dim;
  if (parameter.name.ends_with("norm.weight")) plan.offset = spec.norm_offset;
  const float queries = query_factor(spec);
  if (queries != 1 && (spec.qk_norm ? parameter.name.ends_with("self_attn.q_norm.weight") : q)) plan.factor = queries;
  return plan;
}

}  // namespace

std::string_view recipe_name(GgufRecipe recipe) noexcept {
  return std::ranges::find(kRecipes, recipe, &std::pair<std::string_view, GgufRecipe>::second)->first;
}

GgufRecipe recipe_from_name(std::string_view name) {
  for (const auto& [known, recipe] : kRecipes)
    if (known == name) return recipe;
  fail(Code::invalid, "the GGUF type is \"", name.substr(0, 40), "\"; use f32, f16, q8_0, q4_0 or q4_k_m");
}

// A vector is [rows, 1]: rows are what is permuted.
void GgufTensorPlan::to_file(float* values, std::int64_t rows, std::int64_t cols) const {
  if (offset != 0 || factor != 1)
    for (std::int64_t i = 0; i < rows * cols; ++i) values[i] = (values[i] + offset) * factor;
  if (interleave != 0) permute_heads<true>(values, rows, cols, interleave);
}

void GgufTensorPlan::from_file(float* values, std::int64_t rows, std::int64_t cols) const {
  if (interleave != 0) permute_heads<false>(values, rows, cols, interleave);
  if (offset != 0 || factor != 1)
    for (std::int64_t i = 0; i < rows * cols; ++i) values[i] = values[i] / factor - offset;
}

GgufPlan plan_gguf(const ModelSpec& spec, GgufRecipe recipe) {
  GgufPlan plan;
  plan.architecture = llama_architecture(spec);
  plan.context = exact_context(spec);
  plan.settings = gguf_settings(spec, plan.architecture, recipe, plan.context);
  plan.rope_factors = rope_factors(spec);
  for (const ParameterSpec& parameter : parameters_of(spec)) plan.tensors.push_back(plan_tensor(spec, plan.architecture, recipe, parameter));
  return plan;
}

}  // namespace engine
