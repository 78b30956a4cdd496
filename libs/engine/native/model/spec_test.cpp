#include "model/spec.h"

#include <fstream>
#include <functional>

#include "core/test.h"
#include "model/golden_case.h"
#include "model/weights.h"

using namespace engine;
using namespace engine::test;

namespace {

Json base_config() {
  return Json::parse(R"({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 96, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32"})");
}

Json with(Json config, const std::function<void(Json&)>& change) {
  change(config);
  return config;
}

std::string refusal(const Json& config) {
  try {
    read_spec(config);
  } catch (const Error& error) {
    return error.message();
  }
  return "accepted";
}

bool contains(const std::string& message, const char* part) { return message.find(part) != std::string::npos; }

}  // namespace

TEST("configurations written by transformers 4 and 5 mean the same model") {
  const Json v4 = with(base_config(), [](Json& c) { c["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}}; });
  Json v5 = base_config();
  v5.erase("rope_theta");
  v5.erase("torch_dtype");
  v5["dtype"] = "float32";
  v5["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 10000.0}, {"factor", 4.0}, {"original_max_position_embeddings", 32}};
  const ModelSpec a = read_spec(v4), b = read_spec(v5);
  CHECK_EQ(a.ropes.size(), 1u);
  CHECK(a.ropes[0].type == RopeType::yarn && b.ropes[0].type == RopeType::yarn);
  CHECK_EQ(a.ropes[0].factor, b.ropes[0].factor);
  CHECK_EQ(a.ropes[0].original_context, b.ropes[0].original_context);
  CHECK_EQ(a.ropes[0].theta, b.ropes[0].theta);
}

TEST("qwen2 slides only when told to, and then only from max_window_layers on") {
  Json config = with(base_config(), [](Json& c) { c["sliding_window"] = 16; c["max_window_layers"] = 2; });
  for (const LayerSpec& layer : read_spec(config).layer) CHECK_EQ(layer.window, 0);
  config["use_sliding_window"] = true;
  const ModelSpec spec = read_spec(config);
  CHECK_EQ(spec.layer[1].window, 0);
  CHECK_EQ(spec.layer[2].window, 16);
  CHECK(spec.qkv_bias && !spec.o_bias);
}

TEST("gemma3 alternates five local layers with one global layer and gives each its own rotation") {
  const Json config = Json::parse(R"({"model_type": "gemma3_text", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "sliding_window": 8,
    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})");
  const ModelSpec spec = read_spec(config);
  CHECK(spec.tied && spec.qk_norm && spec.sandwich_norms && spec.scale_embeddings);
  CHECK_EQ(spec.norm_offset, 1.0f);
  CHECK_EQ(spec.layer[4].window, 8);
  CHECK_EQ(spec.layer[4].rope, 1);
  CHECK_EQ(spec.layer[5].window, 0);
  CHECK_EQ(spec.layer[5].rope, 0);
  CHECK(spec.ropes[0].type == RopeType::linear && spec.ropes[1].type == RopeType::standard);
  CHECK_EQ(spec.ropes[0].theta, 1e6);
  CHECK_EQ(spec.ropes[1].theta, 1e4);
}

TEST("an unknown model type is refused by name") {
  const std::string message = refusal(with(base_config(), [](Json& c) { c["model_type"] = "mamba"; }));
  CHECK(contains(message, "mamba") && contains(message, "qwen2"));
  CHECK_THROWS(unsupported, read_spec(with(base_config(), [](Json& c) { c["model_type"] = "mamba"; })));
  CHECK_THROWS(unsupported, read_spec(with(base_config(), [](Json& c) { c["architectures"] = {"Qwen2ForSequenceClassification"}; })));
}

TEST("a setting this engine does not have is refused by name, unless it asks for nothing") {
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["residual_multiplier"] = 0.22; })), "residual_multiplier"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["attention_dropout"] = 0.1; })), "attention_dropout"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["hidden_act"] = "relu"; })), "relu"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["partial_rotary_factor"] = 0.5; })), "partial_rotary_factor"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["rope_scaling"] = {{"rope_type", "longrope"}, {"factor", 2.0}}; })), "longrope"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"mrope_section", {1, 2}}}; })),
                 "mrope_section"));
  CHECK(contains(refusal(with(base_config(), [](Json& c) { c["layer_types"] = {"full_attention", "full_attention", "full_attention", "linear_attention"}; })),
                 "linear_attention"));
  CHECK_EQ(refusal(with(base_config(), [](Json& c) { c["use_mrope"] = false; c["attention_dropout"] = 0.0; c["quantization_config"] = nullptr; })), "accepted");
}

TEST("values that no model can have are refused") {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    CHECK_THROWS(corrupt, read_spec(with(base_config(), [&](Json& c) { c.erase(key); })));
    CHECK_THROWS(corrupt, read_spec(with(base_config(), [&](Json& c) { c[key] = 0; })));
    CHECK_THROWS(corrupt, read_spec(with(base_config(), [&](Json& c) { c[key] = -3; })));
    CHECK_THROWS(corrupt, read_spec(with(base_config(), [&](Json& c) { c[key] = "many"; })));
    CHECK_THROWS(corrupt, read_spec(with(base_config(), [&](Json& c) { c[key] = std::int64_t{1} << 50; })));
  }
  CHECK_THROWS(corrupt, read_spec(with(base_config(), [](Json& c) { c["num_key_value_heads"] = 3; })));
  CHECK_THROWS(corrupt, read_spec(with(base_config(), [](Json& c) { c["rms_norm_eps"] = 0.0; })));
  CHECK_THROWS(corrupt, read_spec(Json::array()));
}

TEST("a configuration that does not fit its tensors is refused with the tensor's name and both shapes") {
  const GoldenCase c = family_goldens().front();
  const auto message = [&](const std::function<void(Json&)>& change) -> std::string {
    const TempDir dir;
    std::filesystem::copy_file(c.dir / "model.safetensors", dir / "model.safetensors");
    std::ofstream(dir / "config.json") << with(read_json(c.dir / "config.json"), change).dump();
    try {
      inspect_model(dir.path());
    } catch (const Error& error) {
      return std::string(code_name(error.code())) + ": " + error.message();
    }
    return "accepted";
  };
  CHECK_EQ(message([](Json&) {}), "accepted");
  const std::string shape = message([](Json& config) { config["intermediate_size"] = 64; });
  CHECK(contains(shape, "corrupt") && contains(shape, "gate_proj") && contains(shape, "[48, 32]") && contains(shape, "[64, 32]"));
  const std::string missing = message([](Json& config) { config["num_hidden_layers"] = 3; });
  CHECK(contains(missing, "corrupt") && contains(missing, "lacks 9 tensors") && contains(missing, "model.layers.2.input_layernorm.weight"));
  const std::string unexpected = message([](Json& config) { config["num_hidden_layers"] = 1; });
  CHECK(contains(unexpected, "corrupt") && contains(unexpected, "model.layers.1."));
  CHECK(contains(message([](Json& config) { config["tie_word_embeddings"] = true; }), "differs"));
}

TEST("a folder's description tells its size without loading it") {
  const GoldenCase c = family_goldens().front();
  const ModelInfo info = inspect_model(c.dir);
  CHECK_EQ(info.model_type, "llama");
  CHECK_EQ(info.layers, 2);
  CHECK_EQ(info.vocab_size, 96);
  CHECK(info.stored_dtype == Dtype::bf16);
  CHECK_EQ(info.parameter_count * 2, info.weight_bytes);
  CHECK(!info.nf4);
}
