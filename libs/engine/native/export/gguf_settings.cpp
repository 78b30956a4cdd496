#include "export/gguf_settings.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "core/error.h"

namespace engine {
namespace {

constexpr std::uint32_t kQuantizationVersion = 2;  // of ggml's block formats

struct Graph {
  std::string_view model_type, architecture;
  Activation activation;
  bool qkv_bias, o_bias, mlp_bias;  // the graph reads such biases
  bool windows;                     // it alternates sliding and full layers
  bool llama3_rope;
  std::int64_t unusual_layers;      // Gemma's 27B, known by its depth, scales q·k by hidden / heads; 0: no such model
};
constexpr std::array kGraphs = {Graph{"llama", "llama", Activation::silu, true, true, true, false, true, 0},
                                Graph{"mistral", "llama", Activation::silu, true, true, true, false, true, 0},
                                Graph{"qwen2", "qwen2", Activation::silu, true, false, false, false, false, 0},
                                Graph{"qwen3", "qwen3", Activation::silu, false, false, false, false, false, 0},
                                Graph{"gemma", "gemma", Activation::gelu_tanh, false, false, false, false, false, 0},
                                Graph{"gemma2", "gemma2", Activation::gelu_tanh, false, false, false, true, false, 46},
                                Graph{"gemma3_text", "gemma3", Activation::gelu_tanh, false, false, false, true, false, 62}};

const Graph& graph_of(const ModelSpec& spec) {
  const auto graph = std::ranges::find(kGraphs, spec.model_type, &Graph::model_type);
  require(Code::unsupported, graph != kGraphs.end(), "models of type ", spec.model_type, " cannot be exported as GGUF");
  return *graph;
}

void require_same(bool ok, const ModelSpec& spec, std::string_view setting) {
  require(Code::unsupported, ok, "llama.cpp's graph of ", spec.model_type, " models has no ", setting, ", which this model has: it cannot be exported as GGUF");
}

float default_yarn_factor(const RopeParameters& rope) { return static_cast<float>(0.1 * std::log(rope.factor) + 1.0); }

void check_ropes(const ModelSpec& spec, const Graph& graph) {
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    const RopeParameters& rope = spec.ropes[i];
    const bool local = i == 1;
    switch (rope.type) {
      case RopeType::standard: break;
      case RopeType::linear: require_same(!local, spec, "rotary scaling of its sliding layers"); break;
      case RopeType::dynamic: require_same(spec.ropes.size() == 1, spec, "dynamic rotary scaling"); break;
      case RopeType::llama3: require_same(graph.llama3_rope, spec, "llama3 rotary scaling"); break;
      case RopeType::yarn:
        require_same(spec.ropes.size() == 1, spec, "yarn rotary scaling");
        require_same(rope.truncate, spec, "yarn scaling with truncate off");
        require_same(std::fabs(rope_frequencies(rope, spec.context).attention_factor - default_yarn_factor(rope)) < 1e-6f, spec,
                     "yarn attention factor other than 0.1 · ln(factor) + 1");
        break;
    }
  }
}

// The p of "every p-th layer sees all, the others slide"; nullopt for another pattern. p beyond the layers: all slide.
std::optional<std::int64_t> window_period(const ModelSpec& spec) {
  std::int64_t period = 1;
  while (period <= spec.layers && spec.layer[static_cast<std::size_t>(period - 1)].window > 0) ++period;
  for (std::int64_t i = 0; i < spec.layers; ++i)
    if ((spec.layer[static_cast<std::size_t>(i)].window > 0) != (i % period < period - 1)) return std::nullopt;
  return period;
}

std::int64_t window_of(const ModelSpec& spec) {
  for (const LayerSpec& layer : spec.layer)
    if (layer.window > 0) return layer.window;
  return 0;
}

std::uint32_t file_type(GgufRecipe recipe) {
  switch (recipe) {
    case GgufRecipe::f32: return 0;
    case GgufRecipe::f16: return 1;
    case GgufRecipe::q4_0: return 2;
    case GgufRecipe::q8_0: return 7;
    case GgufRecipe::q4_k_m: return 15;
  }
  return 0;
}

}  // namespace

std::string llama_architecture(const ModelSpec& spec) {
  const Graph& graph = graph_of(spec);
  require_same(spec.activation == graph.activation, spec, "such activation function");
  require_same(!spec.qkv_bias || graph.qkv_bias, spec, "bias of queries, keys and values");
  require_same(!spec.o_bias || graph.o_bias, spec, "bias of the attention's output");
  require_same(!spec.mlp_bias || graph.mlp_bias, spec, "bias in the MLP");
  if (spec.model_type == "gemma2") {
    require_same(spec.attention_softcap > 0, spec, "attention without a soft cap");
    require_same(spec.logit_softcap > 0, spec, "head without a soft cap");
  } else {
    require_same(spec.attention_softcap == 0, spec, "soft cap of attention scores");
    require_same(spec.logit_softcap == 0 || spec.model_type == "gemma3_text", spec, "soft cap of logits");
  }
  if (graph.windows) require_same(window_period(spec).has_value(), spec, "windows in this order of layers");
  check_ropes(spec, graph);
  return std::string(graph.architecture);
}

std::int64_t exact_context(const ModelSpec& spec) {
  std::int64_t context = std::min<std::int64_t>(spec.context, std::numeric_limits<std::int32_t>::max());
  if (!graph_of(spec).windows && window_of(spec) > 0) context = std::min(context, window_of(spec));
  if (spec.ropes[0].type == RopeType::dynamic) context = std::min(context, spec.ropes[0].original_context);
  return context;
}

float query_factor(const ModelSpec& spec) {
  const Graph& graph = graph_of(spec);
  const bool unusual = graph.unusual_layers != 0 && spec.layers == graph.unusual_layers;
  const double width = static_cast<double>(unusual ? spec.hidden / spec.heads : spec.head_dim);
  const double factor = spec.attention_scale * std::sqrt(width);
  return std::fabs(factor - 1) < 1e-6 ? 1.0f : static_cast<float>(factor);
}

std::vector<float> rope_factors(const ModelSpec& spec) {
  if (spec.ropes[0].type != RopeType::llama3) return {};
  RopeParameters plain = spec.ropes[0];
  plain.type = RopeType::standard;
  const RopeFrequencies unscaled = rope_frequencies(plain, spec.context), scaled = rope_frequencies(spec.ropes[0], spec.context);
  std::vector<float> factors(unscaled.inverse.size());
  for (std::size_t i = 0; i < factors.size(); ++i) factors[i] = unscaled.inverse[i] / scaled.inverse[i];
  return factors;
}

GgufMetadata gguf_settings(const ModelSpec& spec, const std::string& architecture, GgufRecipe recipe, std::int64_t context) {
  const Graph& graph = graph_of(spec);
  GgufMetadata all = {{"general.architecture", architecture},
                      {"general.type", std::string("model")},
                      {"general.file_type", file_type(recipe)},
                      {"general.quantization_version", kQuantizationVersion}};
  const auto add = [&](const char* key, GgufValue value) { all.emplace_back(architecture + "." + key, std::move(value)); };
  const auto number = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  add("vocab_size", number(spec.vocab));
  add("context_length", number(context));
  add("embedding_length", number(spec.hidden));
  add("block_count", number(spec.layers));
  add("feed_forward_length", number(spec.ffn));
  add("attention.head_count", number(spec.heads));
  add("attention.head_count_kv", number(spec.kv_heads));
  add("attention.key_length", number(spec.head_dim));
  add("attention.value_length", number(spec.head_dim));
  add("attention.layer_norm_rms_epsilon", spec.norm_eps);
  add("rope.dimension_count", number(spec.head_dim));
  const RopeParameters& rope = spec.ropes[0];
  add("rope.freq_base", static_cast<float>(rope.theta));
  if (rope.type == RopeType::linear || rope.type == RopeType::yarn) {
    add("rope.scaling.type", std::string(rope.type == RopeType::linear ? "linear" : "yarn"));
    add("rope.scaling.factor", static_cast<float>(rope.factor));
  }
  if (rope.type == RopeType::yarn) {
    add("rope.scaling.original_context_length", number(rope.original_context));
    add("rope.scaling.yarn_beta_fast", static_cast<float>(rope.beta_fast));
    add("rope.scaling.yarn_beta_slow", static_cast<float>(rope.beta_slow));
  }
  if (graph.windows) {
    if (spec.ropes.size() > 1) add("rope.freq_base_swa", static_cast<float>(spec.ropes[1].theta));
    add("attention.sliding_window", number(window_of(spec) > 0 ? window_of(spec) : context));
    add("attention.sliding_window_pattern", number(*window_period(spec)));
  }
  if (spec.attention_softcap > 0) add("attn_logit_softcapping", spec.attention_softcap);
  if (spec.logit_softcap > 0) add("final_logit_softcapping", spec.logit_softcap);
  return all;
}

}  // namespace engine
