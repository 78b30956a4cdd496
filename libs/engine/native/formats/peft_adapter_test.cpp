#include "formats/peft_adapter.h"

#include <cstring>
#include <functional>

#include "core/json.h"
#include "core/staged_output.h"
#include "core/test.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

const std::string kQ = "model.layers.0.self_attn.q_proj", kV = "model.layers.0.self_attn.v_proj";

LoraConfig small_config() { return {.rank = 2, .alpha = 4, .dropout = 0.1, .rslora = false, .target_modules = {"v_proj", "q_proj"}, .base_model_name = "base"}; }

// A valid adapter of two modules.
void write_small(const fs::path& dir) {
  fs::create_directories(dir);
  const std::vector<float> a(6, 0.5f), b(8, 0.25f);
  write_peft_adapter(dir, small_config(), {{kQ, 3, 4, a.data(), b.data()}, {kV, 3, 4, a.data(), b.data()}});
}

// The same with its configuration changed.
void write_changed(const fs::path& dir, const std::function<void(Json&)>& change) {
  write_small(dir);
  Json config = read_json(dir / "adapter_config.json");
  change(config);
  fs::remove(dir / "adapter_config.json");
  write_file(dir / "adapter_config.json", config.dump());
}

void write_tensors(const fs::path& dir, const std::vector<TensorSpec>& specs) {
  const std::vector<float> zeros(4096);
  std::vector<NamedTensor> tensors;
  for (const TensorSpec& spec : specs) tensors.push_back({spec, zeros.data()});
  write_safetensors(dir / "adapter_model.safetensors", tensors, {});
}

}  // namespace

TEST("an adapter comes back as it was written") {
  const test::TempDir temp;
  write_small(temp / "a");
  const PeftAdapter adapter(temp / "a");
  CHECK_EQ(adapter.config().rank, 2);
  CHECK_EQ(adapter.config().scale(), 2.0);
  CHECK_EQ(adapter.config().dropout, 0.1);
  CHECK_EQ(adapter.config().base_model_name, std::string("base"));
  CHECK(adapter.config().target_modules == std::vector<std::string>({"q_proj", "v_proj"}));
  CHECK_EQ(adapter.pairs().size(), 2u);
  CHECK_EQ(adapter.pairs()[0].module, kQ);
  CHECK(adapter.pairs()[0].a->shape == std::vector<std::int64_t>({2, 3}));
  CHECK(adapter.pairs()[0].b->shape == std::vector<std::int64_t>({4, 2}));
}

TEST("adapters that PEFT wrote are read") {
  for (const char* name : {"qwen2_untied", "qwen2_tied", "qwen3"}) {
    const PeftAdapter adapter(test::shared_dir() / "golden" / name / "adapter_after5");
    CHECK_EQ(adapter.config().target_modules.size(), 7u);
    CHECK_EQ(adapter.config().scale(), 2.0);
    CHECK(adapter.pairs().size() >= 14u);
  }
}

TEST("rank-stabilised LoRA scales by the root of the rank") {
  LoraConfig config = small_config();
  config.rslora = true;
  config.rank = 16;
  config.alpha = 8;
  CHECK_EQ(config.scale(), 2.0);
}

TEST("a pattern as target_modules is accepted: the tensors tell what is adapted") {
  const test::TempDir temp;
  write_changed(temp / "a", [](Json& config) { config["target_modules"] = "(?:.*?)(?:q_proj|v_proj)"; });
  CHECK(PeftAdapter(temp / "a").config().target_modules == std::vector<std::string>({"q_proj", "v_proj"}));
}

TEST("what changes the base or the mathematics is refused as unsupported, by its name") {
  const std::vector<std::pair<const char*, std::function<void(Json&)>>> cases = {
      {"IA3", [](Json& c) { c["peft_type"] = "IA3"; }},
      {"bias", [](Json& c) { c["bias"] = "all"; }},
      {"bias", [](Json& c) { c["bias"] = "lora_only"; }},
      {"score", [](Json& c) { c["modules_to_save"] = {"score"}; }},
      {"rank_pattern", [](Json& c) { c["rank_pattern"] = {{"(?=model).*q_proj", 4}}; }},
      {"alpha_pattern", [](Json& c) { c["alpha_pattern"] = {{"(q_proj", 4}}; }},
      {"layers_pattern", [](Json& c) { c["layers_pattern"] = "h"; }},
      {"fan_in_fan_out", [](Json& c) { c["fan_in_fan_out"] = true; }},
      {"lora_bias", [](Json& c) { c["lora_bias"] = true; }},
      {"use_qalora", [](Json& c) { c["use_qalora"] = true; }},
      {"trainable_token_indices", [](Json& c) { c["trainable_token_indices"] = {1, 2}; }},
      {"exclude_modules", [](Json& c) { c["exclude_modules"] = {"layers.1.self_attn.q_proj"}; }},
      {"ensure_weight_tying", [](Json& c) { c["ensure_weight_tying"] = true; }},
      {"pissa", [](Json& c) { c["init_lora_weights"] = "pissa"; }},
      {"pissa_niter_16", [](Json& c) { c["init_lora_weights"] = "pissa_niter_16"; }},
      {"olora", [](Json& c) { c["init_lora_weights"] = "olora"; }},
      {"eva", [](Json& c) { c["init_lora_weights"] = "eva"; }},
      {"corda", [](Json& c) { c["init_lora_weights"] = "corda"; }},
      {"loftq", [](Json& c) { c["init_lora_weights"] = "loftq"; }},
      {"LoRA alpha", [](Json& c) { c["lora_alpha"] = -1; }},
  };
  const test::TempDir temp;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const fs::path dir = temp / text(i);
    write_changed(dir, cases[i].second);
    std::string seen;
    const bool refused = test::throws_code(Code::unsupported, [&] { PeftAdapter{dir}; }, seen);
    try {
      PeftAdapter{dir};
    } catch (const Error& error) {
      seen = error.message();
    }
    if (!refused || seen.find(cases[i].first) == std::string::npos) test::report_failure(__FILE__, __LINE__, text(cases[i].first, ": ", seen));
  }
}

TEST("of the patterns that name a module, the first gives its rank or alpha") {
  LoraConfig config = small_config();
  config.rank_pattern = {{R"(layers\.[1-3]\..*)", 8}, {"q_proj", 4}};
  config.alpha_pattern = {{"^q_proj", 1}, {".*[qk]_proj", 16}, {"q_proj", 1}};
  CHECK_EQ(config.rank_of("model.layers.2.self_attn.q_proj"), 8);
  CHECK_EQ(config.rank_of("model.layers.4.self_attn.q_proj"), 4);
  CHECK_EQ(config.rank_of("model.layers.4.self_attn.v_proj"), 2);
  CHECK_EQ(config.scale_of("model.layers.4.self_attn.q_proj"), 16.0 / 4);
  CHECK_EQ(config.scale_of("model.layers.4.self_attn.v_proj"), 4.0 / 2);
}

TEST("settings that change nothing in a saved adapter are read past") {
  const test::TempDir temp;
  write_changed(temp / "a", [](Json& c) {
    c["init_lora_weights"] = "gaussian";
    c["layers_pattern"] = "layers";
    c["loftq_config"] = Json::object();
    c["qalora_group_size"] = 16;
    c["megatron_core"] = "megatron.core";
    c["runtime_config"] = {{"ephemeral_gpu_offload", false}};
  });
  CHECK_EQ(PeftAdapter(temp / "a").pairs().size(), 2u);
}

TEST("a configuration that contradicts itself or the tensors is refused as corrupt") {
  const std::vector<std::pair<const char*, std::function<void(Json&)>>> cases = {
      {"DoRA without magnitudes", [](Json& c) { c["use_dora"] = true; }},
      {"a whole module without its tensor", [](Json& c) { c["modules_to_save"] = {"lm_head"}; }},
      {"a pattern's rank that is not the tensor's", [](Json& c) { c["rank_pattern"] = {{"q_proj", 4}}; }},
      {"a layer below zero", [](Json& c) { c["layers_to_transform"] = {-1}; }},
      {"a layer twice", [](Json& c) { c["layers_to_transform"] = {0, 0}; }},
      {"rank 0", [](Json& c) { c["r"] = 0; }},  // no matrix can have it
      {"another rank", [](Json& c) { c["r"] = 3; }},
      {"a fractional rank", [](Json& c) { c["r"] = 2.5; }},
      {"a rank in text", [](Json& c) { c["r"] = "2"; }},
      {"no rank", [](Json& c) { c.erase("r"); }},
      {"no targets", [](Json& c) { c.erase("target_modules"); }},
      {"a target without tensors", [](Json& c) { c["target_modules"].push_back("o_proj"); }},
      {"tensors without a target", [](Json& c) { c["target_modules"] = {"q_proj"}; }},
      {"a target that is a number", [](Json& c) { c["target_modules"] = {1}; }},
      {"no type", [](Json& c) { c.erase("peft_type"); }},
  };
  const test::TempDir temp;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const fs::path dir = temp / text(i);
    write_changed(dir, cases[i].second);
    std::string seen;
    if (!test::throws_code(Code::corrupt, [&] { PeftAdapter{dir}; }, seen)) test::report_failure(__FILE__, __LINE__, text(cases[i].first, ": ", seen));
  }
}

TEST("matrices without a partner, of another shape or of another kind are refused") {
  const test::TempDir temp;
  write_small(temp / "a");
  const TensorSpec qa{lora_a_name(kQ), Dtype::f32, {2, 3}}, qb{lora_b_name(kQ), Dtype::f32, {4, 2}};
  const TensorSpec va{lora_a_name(kV), Dtype::f32, {2, 3}}, vb{lora_b_name(kV), Dtype::f32, {4, 2}};
  const auto with = [&](std::vector<TensorSpec> specs) {
    write_tensors(temp / "a", specs);
    return PeftAdapter(temp / "a").pairs().size();
  };
  CHECK_EQ(with({qa, qb, va, vb}), 2u);
  CHECK_THROWS(corrupt, with({qa, qb, va}));
  CHECK_THROWS(corrupt, with({}));
  CHECK_THROWS(corrupt, with({qa, qb, va, {vb.name, Dtype::f32, {4, 3}}}));
  CHECK_THROWS(corrupt, with({qa, qb, va, {vb.name, Dtype::f32, {8}}}));
  CHECK_THROWS(corrupt, with({qa, qb, va, {vb.name, Dtype::f32, {0, 2}}}));
  CHECK_THROWS(unsupported, with({qa, qb, va, {vb.name, Dtype::i64, {4, 2}}}));
  CHECK_THROWS(corrupt, with({qa, qb, va, vb, {"base_model.model.lora_B.weight", Dtype::f32, {4, 2}}}));
  CHECK_THROWS(unsupported, with({qa, qb, va, vb, {"base_model.model.lm_head.weight", Dtype::f32, {4, 2}}}));
  CHECK_THROWS(unsupported, with({qa, qb, va, vb, {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", Dtype::f32, {4}}}));
}

TEST("a folder without its files is refused, a pickle by name") {
  const test::TempDir temp;
  CHECK_THROWS(io, PeftAdapter(temp / "absent"));
  fs::create_directories(temp / "a");
  CHECK_THROWS(io, PeftAdapter(temp / "a"));
  write_small(temp / "b");
  fs::rename(temp / "b/adapter_model.safetensors", temp / "b/adapter_model.bin");
  CHECK_THROWS(unsupported, PeftAdapter(temp / "b"));
}

TEST("a configuration out of range is refused before anything is written") {
  const auto check = [](auto change) {
    LoraConfig config = small_config();
    change(config);
    check_lora_config(config);
  };
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.rank = 0; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.rank = 5000; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.alpha = 0; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.dropout = 1; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.dropout = -0.1; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.target_modules.clear(); }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.target_modules = {"embed_tokens"}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.target_modules = {"q_proj", "q_proj"}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.modules_to_save = {"norm"}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.modules_to_save = {"lm_head", "lm_head"}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.layers = {1, 0}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.layers = {-1}; }));
  CHECK_THROWS(invalid, check([](LoraConfig& c) { c.rank_pattern = {{"q_proj", 0}}; }));
}

}  // namespace engine
