// full_parameters.h: all weights of a model as one trainable fp32 array.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/weights.h"

namespace engine {

class FullParameters {
 public:
  // Widens the base's weights. Throws unsupported for an NF4 base, whose rounding cannot be trained away.
  FullParameters(const ModelSpec& spec, const DecoderWeights& base);
  FullParameters(const FullParameters&) = delete;
  FullParameters& operator=(const FullParameters&) = delete;

  // Parameters in model order; each starts at a multiple of 16 elements, the gaps hold zeros.
  struct Entry {
    ParameterSpec parameter;
    std::int64_t offset = 0, size = 0;
  };
  // Where each parameter of a model lies; the array's length is the last one's end, rounded up.
  static std::vector<Entry> layout_of(const ModelSpec& spec);
  static std::int64_t size_of(const ModelSpec& spec);
  const std::vector<Entry>& entries() const noexcept { return entries_; }
  std::int64_t size() const noexcept { return static_cast<std::int64_t>(values_.size()); }  // gaps included
  float* data() noexcept { return values_.data(); }
  const float* data() const noexcept { return values_.data(); }
  // The decoder that computes with these values.
  const DecoderWeights& view() const noexcept { return view_; }

 private:
  std::vector<Entry> entries_;
  std::vector<float> values_;
  DecoderWeights view_;
};

// A Hugging Face folder: config.json of the base (its dtype replaced), model.safetensors in `dtype` (f32, f16 or bf16), and the files beside them,
// written into an existing folder. Throws io.
void write_model_folder(const std::filesystem::path& dir, const std::filesystem::path& base_dir, const FullParameters& parameters, Dtype dtype);

}  // namespace engine
