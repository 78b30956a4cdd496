// lora.h: low-rank adapters.   y = x·Wᵀ + b + s · dropout(x)·Aᵀ·Bᵀ      A [r, in], B [out, r], fp32
//   s = alpha / r, or alpha / sqrt(r) with rsLoRA.  dropout zeroes each input of A with probability p and divides the rest by 1 − p, with
//   a mask of its own for every projection, as PEFT does. A frozen W, trainable A and B.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "formats/peft_adapter.h"
#include "model/spec.h"

namespace engine {

// Where one pair lies in an adapter's flat parameter array.
struct LoraPair {
  std::int64_t a = 0, b = 0;          // offsets, in elements
  std::int64_t inputs = 0, outputs = 0;
};

// One adapter: a flat fp32 array in model order (layer by layer, projection by projection, A before B), so optimizer state and gradients
// of the same length line up with it element by element.
class LoraAdapter {
 public:
  // Zeros. Throws invalid when the configuration is out of range.
  LoraAdapter(const ModelSpec& model, const LoraConfig& config);

  // A PEFT folder. Throws io, corrupt (a missing tensor, a shape that does not fit this model), unsupported (a PEFT feature this engine does not
  // have, or a tensor that belongs to no layer of this model: named).
  static LoraAdapter read(const ModelSpec& model, const std::filesystem::path& dir);
  // Writes adapter_config.json and adapter_model.safetensors into an existing folder, as PEFT does. Throws io.
  void write(const std::filesystem::path& dir, const std::string& base_model_name) const;
  // Only the tensors, with `values` (gradients, for instance) in place of the adapter's own.
  void write_tensors(const std::filesystem::path& file, const float* values) const;

  const LoraConfig& config() const noexcept { return config_; }
  std::int64_t size() const noexcept { return static_cast<std::int64_t>(values_.size()); }
  float* data() noexcept { return values_.data(); }
  const float* data() const noexcept { return values_.data(); }
  float scale() const noexcept { return scale_; }
  bool fits(const ModelSpec& model) const noexcept;  // as many layers, and matrices of these shapes
  // nullptr when the projection is not adapted.
  const LoraPair* pair(std::int64_t layer, Projection projection) const noexcept;

  // A uniform in ±1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B zero. The same seed gives the same bits.
  void initialize(std::uint64_t seed);

  // f(name, shape, offset) for every tensor, under PEFT's key ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").
  template <class F>
  void for_each_tensor(F&& f) const {
    for (std::int64_t layer = 0; layer < layers_; ++layer)
      for (int p = 0; p < kProjections; ++p)
        if (const LoraPair* at = pair(layer, static_cast<Projection>(p))) {
          f(lora_a_name(module(layer, p)), std::vector<std::int64_t>{config_.rank, at->inputs}, at->a);
          f(lora_b_name(module(layer, p)), std::vector<std::int64_t>{at->outputs, config_.rank}, at->b);
        }
  }

 private:
  static std::string module(std::int64_t layer, int projection);

  LoraConfig config_;
  float scale_ = 0;
  std::int64_t layers_ = 0;
  std::vector<LoraPair> pairs_;  // [layer][projection]; inputs 0 where there is none
  std::vector<float> values_;
};

}  // namespace engine
