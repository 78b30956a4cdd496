// peft_adapter.h: a LoRA adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors.
//   For a module of path X (model.layers.0.self_attn.q_proj):   base_model.model.X.lora_A.weight          A [r, in]
//                                                               base_model.model.X.lora_B.weight          B [out, r]
//   with DoRA also                                              base_model.model.X.lora_magnitude_vector  m [out]
//   W' = W + scale · B·A,   scale = alpha / r, or alpha / √r with rsLoRA;   DoRA: W'_o = m_o · V_o / ‖V_o‖ with V = W + scale · B·A, row by row.
//   A module trained whole (modules_to_save: the token table, the head) is stored whole: base_model.model.model.embed_tokens.weight [vocab, hidden].
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <utility>
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
  bool dora = false;
  std::vector<std::string> modules_to_save = {};  // of "embed_tokens" and "lm_head"
  std::vector<std::int64_t> layers = {};          // layers_to_transform: those that are adapted, ascending; empty: all
  // Modules whose rank or alpha is not the common one, by patterns of their paths (module_pattern.h); the first that names a module counts.
  std::vector<std::pair<std::string, std::int64_t>> rank_pattern = {};
  std::vector<std::pair<std::string, double>> alpha_pattern = {};

  double scale() const;  // of a module that no pattern names
  std::int64_t rank_of(std::string_view module) const;
  double scale_of(std::string_view module) const;
};

// Throws invalid when a value is out of its range.
void check_lora_config(const LoraConfig& config);

// The target modules this engine knows, in the order of a block: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
const std::vector<std::string>& known_target_modules();

// The modules that may be trained whole, and their paths in the model.
inline constexpr std::string_view kEmbeddingModule = "embed_tokens", kHeadModule = "lm_head";
inline constexpr std::string_view kEmbeddingPath = "model.embed_tokens", kHeadPath = "lm_head";

struct AdapterPair {
  std::string module;     // "model.layers.0.self_attn.q_proj"
  const TensorView* a;    // [r, in], f32, bf16 or f16
  const TensorView* b;    // [out, r]
  const TensorView* magnitude = nullptr;  // [out], DoRA's; null without
};

// A read adapter: the views borrow from its file.
class PeftAdapter {
 public:
  // Throws io, corrupt (a tensor without its partner, a shape that contradicts the rank, a target without tensors), or unsupported for what would
  // change the base or the mathematics (trained biases, initializations that rewrite W, other decompositions: named), and for a pickle. Shapes against
  // a base are the caller's to check.
  explicit PeftAdapter(const std::filesystem::path& dir);

  const LoraConfig& config() const noexcept { return config_; }
  const std::vector<AdapterPair>& pairs() const noexcept { return pairs_; }  // sorted by module
  // Modules stored whole, [vocab, hidden] each; null when the adapter does not train them.
  const TensorView* embedding() const noexcept { return embedding_; }
  const TensorView* head() const noexcept { return head_; }
  // Whether the targets are plain names, so that each of them is adapted in every layer that is; else the tensors alone tell what is adapted.
  bool targets_are_names() const noexcept { return targets_are_names_; }
  const SafetensorsFile& file() const noexcept { return file_; }

  // What adapter_config.json declares. targets_listed is false when target_modules is a pattern: then the tensors alone tell what is adapted.
  struct Declared {
    LoraConfig lora;
    bool targets_listed = true;
  };

 private:
  PeftAdapter(Declared declared, const std::filesystem::path& dir);
  bool take_saved_module(const TensorView& tensor);
  void check_targets(bool listed, const std::set<std::string>& adapted);

  LoraConfig config_;
  SafetensorsFile file_;
  std::vector<AdapterPair> pairs_;
  const TensorView *embedding_ = nullptr, *head_ = nullptr;
  bool targets_are_names_ = true;
};

struct AdapterMatrices {
  std::string module;
  std::int64_t in = 0, out = 0;
  const float* a = nullptr;  // [r, in]
  const float* b = nullptr;  // [out, r]
  const float* magnitude = nullptr;  // [out], with DoRA
};

// A module stored whole.
struct SavedMatrix {
  std::string module;  // its path
  std::int64_t rows = 0, cols = 0;
  const float* values = nullptr;
};

// Names of a module's tensors in adapter_model.safetensors, and of saved gradients.
std::string lora_a_name(std::string_view module);
std::string lora_b_name(std::string_view module);
std::string lora_magnitude_name(std::string_view module);
std::string saved_module_name(std::string_view module);

// Writes both files into an existing folder (a StagedDirectory's, for atomicity), as f32. PEFT loads the result.
void write_peft_adapter(const std::filesystem::path& dir, const LoraConfig& config, const std::vector<AdapterMatrices>& matrices,
                        const std::vector<SavedMatrix>& saved = {});

}  // namespace engine
