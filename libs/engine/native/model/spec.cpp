#include "model/spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "formats/bnb_nf4.h"
#include "model/rope_config.h"

namespace engine {
namespace {

constexpr std::string_view kConfig = "config.json";

enum class Windows : std::uint8_t { none, all, after_max_window_layers, even_layers, five_of_six };

// What the families do differently, and the defaults transformers gives to keys a file may leave out.
struct Family {
  std::string_view model_type, architecture;
  std::int64_t head_dim;  // 0: hidden / heads
  std::int64_t kv_heads;  // 0: as many as heads
  std::int64_t context;
  std::int64_t window;
  Windows windows;
  double rope_theta;
  bool tied, gemma, qkv_bias, qk_norm, sandwich_norms, attention_bias_key, mlp_bias_key;
};
constexpr std::array kFamilies = {
    Family{"llama", "LlamaForCausalLM", 0, 0, 2048, 0, Windows::none, 1e4, false, false, false, false, false, true, true},
    Family{"mistral", "MistralForCausalLM", 0, 8, 131072, 4096, Windows::all, 1e4, false, false, false, false, false, false, false},
    Family{"qwen2", "Qwen2ForCausalLM", 0, 32, 32768, 4096, Windows::after_max_window_layers, 1e4, false, false, true, false, false, false, false},
    Family{"qwen3", "Qwen3ForCausalLM", 128, 32, 32768, 4096, Windows::after_max_window_layers, 1e4, false, false, false, true, false, true, false},
    Family{"gemma", "GemmaForCausalLM", 256, 16, 8192, 0, Windows::none, 1e4, true, true, false, false, false, true, false},
    Family{"gemma2", "Gemma2ForCausalLM", 256, 4, 8192, 4096, Windows::even_layers, 1e4, true, true, false, false, true, true, false},
    Family{"gemma3_text", "Gemma3ForCausalLM", 256, 4, 131072, 4096, Windows::five_of_six, 1e6, true, true, false, true, true, true, false},
};

// Keys that change nothing about the decoder's mathematics: provenance, tokens' roles, and generation defaults of old files.
constexpr std::array kIgnoredKeys = std::to_array<std::string_view>(
    {"_name_or_path", "_attn_implementation_autoset", "_commit_hash", "architectures", "attn_implementation", "auto_map", "bad_words_ids",
     "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id",
     "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
     "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_range",
     "label2id", "length_penalty", "max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
     "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "pretraining_tp",
     "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
     "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
     "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "unsloth_fixed",
     "unsloth_version", "use_bfloat16", "use_cache"});

// Keys read below, for every family.
constexpr std::array kReadKeys = std::to_array<std::string_view>(
    {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
     "max_position_embeddings", "rms_norm_eps", "hidden_act", "hidden_activation", "tie_word_embeddings", "rope_theta", "rope_scaling",
     "rope_parameters", "layer_types", "quantization_config"});

// Keys a family reads beyond those.
bool reads_key(const Family& family, std::string_view key) {
  if (std::ranges::find(kReadKeys, key) != kReadKeys.end()) return true;
  if (key == "attention_bias") return family.attention_bias_key;
  if (key == "mlp_bias") return family.mlp_bias_key;
  if (key == "sliding_window") return family.windows != Windows::none;
  if (key == "use_sliding_window" || key == "max_window_layers") return family.windows == Windows::after_max_window_layers;
  if (key == "query_pre_attn_scalar" || key == "attn_logit_softcapping" || key == "final_logit_softcapping") return family.sandwich_norms;
  if (key == "rope_local_base_freq" || key == "sliding_window_pattern" || key == "_sliding_window_pattern")
    return family.windows == Windows::five_of_six;
  return false;
}

// A key with such a value asks for nothing: null, false, 0, "" and empty containers.
bool asks_for_nothing(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) || (value.is_number() && value.get<double>() == 0) ||
         ((value.is_string() || value.is_structured()) && value.empty()) || (value.is_string() && value.get_ref<const std::string&>().empty());
}

void refuse_unknown_settings(const Json& config, const Family& family) {
  for (const auto& [key, value] : config.items()) {
    if (reads_key(family, key) || std::ranges::find(kIgnoredKeys, key) != kIgnoredKeys.end() || asks_for_nothing(value)) continue;
    if (key == "partial_rotary_factor" && value.is_number() && value.get<double>() == 1) continue;
    // Windows written into a config of a family that has none, and neutral defaults of Qwen's long-context switches.
    if (key == "max_window_layers") continue;
    fail(Code::unsupported, "config.json: ", family.model_type, " with ", key, " = ", value.dump().substr(0, 80), " is not supported");
  }
}

const Family& family_of(const Json& config) {
  const std::string model_type = json_string(config, "model_type", kConfig);
  const auto family = std::ranges::find(kFamilies, model_type, &Family::model_type);
  if (family == kFamilies.end()) {
    std::string known;
    for (const Family& f : kFamilies) known.append(known.empty() ? "" : ", ").append(f.model_type);
    fail(Code::unsupported, "config.json: model_type \"", model_type, "\" is not supported; this engine runs ", known);
  }
  if (const auto names = find_json_strings(config, "architectures", kConfig); names && !names->empty())
    require(Code::unsupported, std::ranges::find(*names, family->architecture) != names->end(), "config.json: architecture \"", names->front(),
            "\" is not supported; for model_type ", model_type, " this engine runs ", family->architecture);
  return *family;
}

std::int64_t positive(const Json& config, const char* key, std::optional<std::int64_t> fallback, std::int64_t most) {
  const auto found = find_json_int(config, key, kConfig);
  require(Code::corrupt, found || fallback, "config.json has no ", key);
  const std::int64_t value = found.value_or(fallback.value_or(0));
  require(Code::corrupt, value >= 1 && value <= most, "config.json: ", key, " is ", value, "; it must be from 1 to ", most);
  return value;
}

Activation read_activation(const Json& config, const Family& family) {
  // Gemma 1 files say hidden_act "gelu" and mean its tanh form, which `hidden_activation` spells out when present.
  auto name = family.gemma ? find_json_string(config, "hidden_activation", kConfig) : std::nullopt;
  if (!name) name = find_json_string(config, "hidden_act", kConfig);
  if (!name) return family.gemma ? Activation::gelu_tanh : Activation::silu;
  if (*name == "silu" || *name == "swish") return Activation::silu;
  if (*name == "gelu_pytorch_tanh" || *name == "gelu_new" || (family.gemma && *name == "gelu")) return Activation::gelu_tanh;
  fail(Code::unsupported, "config.json: hidden_act \"", *name, "\" is not supported; use silu or gelu_pytorch_tanh");
}

float read_softcap(const Json& config, const char* key, double fallback) {
  if (config.contains(key) && config.at(key).is_null()) return 0;
  const double cap = find_json_number(config, key, kConfig).value_or(fallback);
  require(Code::corrupt, std::isfinite(cap) && cap >= 0, "config.json: ", key, " is ", cap, "; it must not be negative");
  return static_cast<float>(cap);
}

// sliding_window of the layers that slide; 0 when none does.
std::int64_t read_window(const Json& config, const Family& family) {
  if (family.windows == Windows::after_max_window_layers && !find_json_bool(config, "use_sliding_window", kConfig).value_or(false)) return 0;
  if (config.contains("sliding_window") && config.at("sliding_window").is_null()) return 0;
  const std::int64_t window = find_json_int(config, "sliding_window", kConfig).value_or(family.window);
  require(Code::corrupt, window >= 0, "config.json: sliding_window is ", window);
  return window;
}

bool layer_slides(const Json& config, const Family& family, std::int64_t layer) {
  switch (family.windows) {
    case Windows::none: return false;
    case Windows::all: return true;
    case Windows::even_layers: return layer % 2 == 0;
    case Windows::after_max_window_layers: return layer >= find_json_int(config, "max_window_layers", kConfig).value_or(28);
    case Windows::five_of_six: {
      auto pattern = find_json_int(config, "sliding_window_pattern", kConfig);
      if (!pattern) pattern = find_json_int(config, "_sliding_window_pattern", kConfig);
      require(Code::corrupt, pattern.value_or(6) >= 1, "config.json: sliding_window_pattern is ", pattern.value_or(6));
      return (layer + 1) % pattern.value_or(6) != 0;
    }
  }
  return false;
}

std::vector<LayerSpec> read_layers(const Json& config, const Family& family, std::int64_t count) {
  const std::int64_t window = read_window(config, family);
  const auto types = find_json_strings(config, "layer_types", kConfig);
  if (types)
    require(Code::corrupt, static_cast<std::int64_t>(types->size()) == count, "config.json: layer_types has ", types->size(), " entries for ",
            count, " layers");
  std::vector<LayerSpec> layers(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    bool slides = layer_slides(config, family, i) && window > 0;
    if (types) {
      const std::string& type = (*types)[static_cast<std::size_t>(i)];
      require(Code::unsupported, type == "full_attention" || type == "sliding_attention", "config.json: layer type \"", type,
              "\" is not supported; this engine runs full_attention and sliding_attention");
      slides = type == "sliding_attention";
      require(Code::corrupt, !slides || window > 0, "config.json: layer ", i, " is sliding_attention, but no sliding_window is in force");
    }
    auto& layer = layers[static_cast<std::size_t>(i)];
    layer.window = slides ? window : 0;
    layer.rope = family.windows == Windows::five_of_six && slides ? 1 : 0;
  }
  return layers;
}

}  // namespace

const char* projection_name(Projection projection) noexcept {
  constexpr const char* names[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return names[static_cast<int>(projection)];
}

const char* projection_path(Projection projection) noexcept {
  constexpr const char* paths[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                   "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return paths[static_cast<int>(projection)];
}

std::int64_t ModelSpec::rows(Projection projection) const noexcept {
  switch (projection) {
    case Projection::q: return q_size();
    case Projection::k:
    case Projection::v: return kv_size();
    case Projection::gate:
    case Projection::up: return ffn;
    case Projection::o:
    case Projection::down: return hidden;
  }
  return 0;
}

std::int64_t ModelSpec::columns(Projection projection) const noexcept {
  if (projection == Projection::o) return q_size();
  return projection == Projection::down ? ffn : hidden;
}

bool ModelSpec::has_bias(Projection projection) const noexcept {
  if (projection == Projection::o) return o_bias;
  return projection < Projection::o ? qkv_bias : mlp_bias;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

std::vector<ParameterSpec> parameters_of(const ModelSpec& spec) {
  std::vector<ParameterSpec> list;
  list.push_back({"model.embed_tokens.weight", {spec.vocab, spec.hidden}});
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string layer = text("model.layers.", i, ".");
    const auto norm = [&](const char* name, std::int64_t size) { list.push_back({layer + name + ".weight", {size}}); };
    const auto linear = [&](Projection p) {
      list.push_back({layer + projection_path(p) + ".weight", {spec.rows(p), spec.columns(p)}});
      if (spec.has_bias(p)) list.push_back({layer + projection_path(p) + ".bias", {spec.rows(p)}});
    };
    norm("input_layernorm", spec.hidden);
    for (const Projection p : {Projection::q, Projection::k, Projection::v}) linear(p);
    if (spec.qk_norm) {
      norm("self_attn.q_norm", spec.head_dim);
      norm("self_attn.k_norm", spec.head_dim);
    }
    linear(Projection::o);
    norm("post_attention_layernorm", spec.hidden);
    if (spec.sandwich_norms) norm("pre_feedforward_layernorm", spec.hidden);
    for (const Projection p : {Projection::gate, Projection::up, Projection::down}) linear(p);
    if (spec.sandwich_norms) norm("post_feedforward_layernorm", spec.hidden);
  }
  list.push_back({"model.norm.weight", {spec.hidden}});
  if (!spec.tied) list.push_back({"lm_head.weight", {spec.vocab, spec.hidden}});
  return list;
}

std::int64_t parameter_count(const ModelSpec& spec) {
  std::int64_t count = 0;
  for (const ParameterSpec& tensor : parameters_of(spec)) {
    std::int64_t size = 1;
    for (const std::int64_t extent : tensor.shape) size *= extent;
    count += size;
  }
  return count;
}

ModelSpec read_spec(const Json& config) {
  require(Code::corrupt, config.is_object(), "config.json is not an object");
  const Family& family = family_of(config);
  refuse_unknown_settings(config, family);

  ModelSpec spec;
  spec.model_type = family.model_type;
  spec.architecture = family.architecture;
  // Bounds keep every product below 2^63 and refuse files no machine could hold.
  spec.vocab = positive(config, "vocab_size", {}, 1 << 24);
  spec.hidden = positive(config, "hidden_size", {}, 1 << 20);
  spec.ffn = positive(config, "intermediate_size", {}, 1 << 22);
  spec.layers = positive(config, "num_hidden_layers", {}, 1 << 12);
  spec.heads = positive(config, "num_attention_heads", {}, 1 << 14);
  spec.kv_heads = positive(config, "num_key_value_heads", family.kv_heads == 0 ? spec.heads : family.kv_heads, 1 << 14);
  require(Code::corrupt, spec.heads % spec.kv_heads == 0, "config.json: ", spec.heads, " attention heads do not divide among ", spec.kv_heads,
          " key-value heads");
  if (!find_json_int(config, "head_dim", kConfig) && family.head_dim == 0)
    require(Code::corrupt, spec.hidden % spec.heads == 0, "config.json: hidden_size ", spec.hidden, " is not a multiple of ", spec.heads,
            " heads, and there is no head_dim");
  spec.head_dim = positive(config, "head_dim", family.head_dim == 0 ? spec.hidden / spec.heads : family.head_dim, 1 << 12);
  require(Code::unsupported, spec.head_dim % 2 == 0, "config.json: head_dim ", spec.head_dim, " is odd; rotary embeddings need an even one");
  spec.context = positive(config, "max_position_embeddings", family.context, std::int64_t{1} << 40);
  const double eps = find_json_number(config, "rms_norm_eps", kConfig).value_or(1e-6);
  require(Code::corrupt, eps > 0 && eps < 1, "config.json: rms_norm_eps is ", eps);
  spec.norm_eps = static_cast<float>(eps);
  spec.activation = read_activation(config, family);
  spec.tied = find_json_bool(config, "tie_word_embeddings", kConfig).value_or(family.tied);

  const bool attention_bias = family.attention_bias_key && find_json_bool(config, "attention_bias", kConfig).value_or(false);
  spec.qkv_bias = family.qkv_bias || attention_bias;
  spec.o_bias = attention_bias;
  spec.mlp_bias = family.mlp_bias_key && find_json_bool(config, "mlp_bias", kConfig).value_or(false);
  spec.qk_norm = family.qk_norm;
  spec.sandwich_norms = family.sandwich_norms;
  spec.norm_offset = family.gemma ? 1.0f : 0.0f;
  spec.scale_embeddings = family.gemma;

  double query_scalar = static_cast<double>(spec.head_dim);
  if (family.sandwich_norms) query_scalar = find_json_number(config, "query_pre_attn_scalar", kConfig).value_or(256);
  require(Code::corrupt, query_scalar > 0, "config.json: query_pre_attn_scalar is ", query_scalar);
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(query_scalar));
  if (family.sandwich_norms) {
    const bool capped = family.model_type == "gemma2";
    spec.attention_softcap = read_softcap(config, "attn_logit_softcapping", capped ? 50.0 : 0.0);
    spec.logit_softcap = read_softcap(config, "final_logit_softcapping", capped ? 30.0 : 0.0);
  }
  spec.layer = read_layers(config, family, spec.layers);
  spec.ropes = read_ropes(config, family.rope_theta, family.windows == Windows::five_of_six, spec.head_dim, spec.context);
  read_quantization_config(config);  // refuses what the weights could not be read as
  return spec;
}

ModelSpec read_spec(const std::filesystem::path& model_dir) { return read_spec(read_json(model_dir / "config.json", {.max_bytes = 10'000'000})); }

}  // namespace engine
