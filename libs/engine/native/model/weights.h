// weights.h: the parameters of a decoder, as views the forward pass reads.
//   A frozen base keeps its stored types and stays mapped from its files; only norms and biases (a few kB) are copied to fp32.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "formats/bnb_nf4.h"
#include "formats/hf_folder.h"
#include "model/spec.h"
#include "ops/matrix.h"

namespace engine {

struct LinearWeights {
  Matrix weight;                // [outputs, inputs]
  const float* bias = nullptr;  // [outputs], or null
};

// Norm weights that the architecture does not have are null.
struct LayerWeights {
  const float* input_norm = nullptr;      // [hidden]
  const float* attention_norm = nullptr;  // [hidden], of the attention's output (sandwich norms)
  const float* mlp_norm = nullptr;        // [hidden], of the MLP's input
  const float* mlp_output_norm = nullptr;  // [hidden] (sandwich norms)
  const float* q_norm = nullptr;          // [head_dim]
  const float* k_norm = nullptr;          // [head_dim]
  std::array<LinearWeights, kProjections> linear;

  const LinearWeights& operator[](Projection projection) const noexcept { return linear[static_cast<std::size_t>(projection)]; }
};

// Borrows everything.
struct DecoderWeights {
  Matrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  const float* final_norm = nullptr;  // [hidden]
  Matrix head;                        // [vocab, hidden]; the embedding when tied
};

// Where a parameter goes in DecoderWeights, for whoever fills one from a list of names.
struct ParameterSlot {
  const float** vector = nullptr;  // a norm or a bias
  Matrix* matrix = nullptr;        // anything else
  bool block_linear = false;       // one of the seven projections of a block
};
ParameterSlot find_slot(const ModelSpec& spec, DecoderWeights& weights, const std::string& name);

enum class QuantizeOnLoad : std::uint8_t { none, nf4 };  // nf4: every 16/32-bit linear of the blocks, with double quantization

// The weights of a Hugging Face folder, loaded once and shared by everything that runs the model.
class ModelWeights {
 public:
  // Throws corrupt naming the tensors when the folder's tensors are not exactly those of the spec, unsupported for a stored type this engine does not
  // read, cancelled between tensors. `ex` computes the quantization.
  ModelWeights(const ModelSpec& spec, const std::filesystem::path& dir, QuantizeOnLoad quantize, const Exec& ex, const CancelFlag* cancel = nullptr);

  const DecoderWeights& view() const noexcept { return view_; }
  bool quantized() const noexcept { return quantized_; }        // at least one linear is NF4
  bool double_quantized() const noexcept { return double_quantized_; }
  Dtype stored_dtype() const noexcept { return stored_; }       // of the embedding table
  std::int64_t bytes() const noexcept { return bytes_; }        // of all parameters as held: mapped and owned

 private:
  // NF4 made on load. Doubly quantized scales.
  struct Nf4Owned {
    std::vector<std::uint8_t> packed;
    std::vector<std::uint8_t> scale_codes;
    std::vector<float> nested_absmax;
  };

  void load_vector(const TensorView& tensor, const float** slot);
  void load_matrix(const HfFolder& folder, const TensorView& tensor, const ParameterSpec& parameter, bool may_quantize, const Exec& ex, Matrix* slot);
  void load_stored_nf4(Nf4Stored stored, const ParameterSpec& parameter, Matrix* slot);

  std::unique_ptr<HfFolder> folder_;
  DecoderWeights view_;
  std::deque<std::vector<float>> vectors_;  // deques: addresses stay while they grow
  std::deque<Nf4Owned> made_;
  std::deque<Nf4Stored> stored_nf4_;
  Dtype stored_ = Dtype::f32;
  bool quantized_ = false, double_quantized_ = false;
  std::int64_t bytes_ = 0;
};

// Throws corrupt unless the folder's tensors are exactly those of the spec, by name and shape: what ModelWeights does, without loading.
void check_tensors(const ModelSpec& spec, const HfFolder& folder);

}  // namespace engine
