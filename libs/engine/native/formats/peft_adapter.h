// peft_adapter.h: a LoRA adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors.
//   For a module of path X (model.layers.0.self_attn.q_proj):   base_model.model.X.lora_A.weight  A [r, in]
//                                                               base_model.model.X.lora_B.weight  B [out, r]
//   W' = W + scale · B·A,   scale = alpha / r, or alpha / √r with rsLoRA.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "formats/safetensors.h"

namespace engine {

struct LoraConfig {
  std::int64_t rank = 0;   // 1 to 4096
  double alpha = 0;
  double dropout = 0;      // of the adapter's input while training, 0 to below 1
  bool rslora = false;
  std::vector<std::string> target_modules;  // last components of module paths: "q_proj"; sorted
  std::string base_model_name;              // for people and PEFT; empty when unknown

  double scale() const;
};

// Throws invalid when a value is out of its range.
void check_lora_config(const LoraConfig& config);

// The target modules this engine knows, in the order of a block: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
const std::vector<std::string>& known_target_modules();

struct AdapterPair {
  std::string module;     // "model.layers.0.self_attn.q_proj"
  const TensorView* a;    // [r, in], f32, bf16 or f16
  const TensorView* b;    // [out, r]
};

// A read adapter: the views borrow from its file.
class PeftAdapter {
 public:
  // Throws io, corrupt (a tensor without its partner, a shape that contradicts the rank, a target without tensors), or unsupported for what plain
  // LoRA is not: DoRA, trained biases, modules_to_save, per-module ranks, a pickle. Shapes against a base are the caller's to check.
  explicit PeftAdapter(const std::filesystem::path& dir);

  const LoraConfig& config() const noexcept { return config_; }
  const std::vector<AdapterPair>& pairs() const noexcept { return pairs_; }  // sorted by module
  const SafetensorsFile& file() const noexcept { return file_; }

  // What adapter_config.json declares. targets_listed is false when target_modules is a pattern: then the tensors alone tell what is adapted.
  struct Declared {
    LoraConfig lora;
    bool targets_listed = true;
  };

 private:
  PeftAdapter(Declared declared, const std::filesystem::path& dir);

  LoraConfig config_;
  SafetensorsFile file_;
  std::vector<AdapterPair> pairs_;
};

struct AdapterMatrices {
  std::string module;
  std::int64_t in = 0, out = 0;
  const float* a = nullptr;  // [r, in]
  const float* b = nullptr;  // [out, r]
};

// Names of the two tensors of a module in adapter_model.safetensors, and of saved gradients.
std::string lora_a_name(std::string_view module);
std::string lora_b_name(std::string_view module);

// Writes both files into an existing folder (a StagedDirectory's, for atomicity), as f32. PEFT loads the result.
void write_peft_adapter(const std::filesystem::path& dir, const LoraConfig& config, const std::vector<AdapterMatrices>& matrices);

}  // namespace engine
