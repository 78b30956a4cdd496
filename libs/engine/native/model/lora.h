// lora.h: low-rank adapters.   y = x·Wᵀ + b + s · dropout(x)·Aᵀ·Bᵀ      A [r, in], B [out, r], fp32
//   s = alpha / r, or alpha / sqrt(r) with rsLoRA.  dropout zeroes each input of A with probability p and divides the rest by 1 − p, with
//   a mask of its own for every projection, as PEFT does. A frozen W, trainable A and B.
//   DoRA (ops/dora.h):  y = x·Wᵀ + b + dropout(x)·(c ⊙ (W + s·B·A) − W)ᵀ, with trainable magnitudes too; without dropout that is x·(c ⊙ (W + s·B·A))ᵀ + b.
//   An adapter may also hold a token table or a head of its own (modules_to_save), trained whole; they take the place of the base's. Where the base's
//   are tied, the adapter's are separate matrices and leave the other as it is, as PEFT does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "formats/peft_adapter.h"
#include "model/arena.h"
#include "model/spec.h"
#include "model/weights.h"

namespace engine {

// Where the tensors of one adapted projection lie in an adapter's flat parameter array.
struct LoraPair {
  std::int64_t a = 0, b = 0;          // offsets, in elements
  std::int64_t magnitude = 0;         // DoRA: m [outputs]
  std::int64_t norm = 0;              // DoRA: offset of 1 / ‖V‖ [outputs] in inverse_norms()
  std::int64_t inputs = 0, outputs = 0, rank = 0;
  float scale = 0;
};

// One adapter: a flat fp32 array in model order (layer by layer, projection by projection, A before B before m; then the token table, then the
// head), so optimizer state and gradients of the same length line up with it element by element.
class LoraAdapter {
 public:
  // Zeros. Throws invalid when the configuration is out of range.
  LoraAdapter(const ModelSpec& model, const LoraConfig& config);

  // The same places without memory for the values: what an adapter would be, for planning. data() must not be used.
  static LoraAdapter layout_of(const ModelSpec& model, const LoraConfig& config) { return LoraAdapter(model, config, nullptr, Values::none); }

  // A PEFT folder; with DoRA, bind() must follow. Throws io, corrupt (a missing tensor, a shape that does not fit this model), unsupported (a PEFT
  // feature this engine does not have, or a tensor that belongs to no layer of this model: named).
  static LoraAdapter read(const ModelSpec& model, const std::filesystem::path& dir);
  // Writes adapter_config.json and adapter_model.safetensors into an existing folder, as PEFT does. Throws io.
  void write(const std::filesystem::path& dir, const std::string& base_model_name) const;
  // Only the tensors, with `values` (gradients, for instance) in place of the adapter's own.
  void write_tensors(const std::filesystem::path& file, const float* values) const;

  const LoraConfig& config() const noexcept { return config_; }
  std::int64_t size() const noexcept { return size_; }
  float* data() noexcept { return values_.data(); }
  const float* data() const noexcept { return values_.data(); }
  bool fits(const ModelSpec& model) const noexcept;  // as many layers, and matrices of these shapes
  // nullptr when the projection is not adapted.
  const LoraPair* pair(std::int64_t layer, Projection projection) const noexcept;
  std::int64_t widest_rank(Projection projection) const noexcept;  // over all layers; 0 when no layer adapts it
  std::int64_t first_layer() const noexcept;                       // the lowest one that is adapted

  // The adapter's own token table and head, [vocab, hidden]; nullopt where the base's is used. They borrow from this object.
  std::optional<Matrix> embedding() const noexcept { return saved(embedding_); }
  std::optional<Matrix> head() const noexcept { return saved(head_); }
  std::int64_t embedding_offset() const noexcept { return embedding_; }  // −1 without
  std::int64_t head_offset() const noexcept { return head_; }

  // A uniform in ±1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B zero. The same seed gives the same bits.
  void initialize(std::uint64_t seed);
  // The modules trained whole, as the base has them.
  void copy_whole_modules(const DecoderWeights& base);
  // What a fresh adapter takes from its base: copies of the modules trained whole, magnitudes equal to the norms of V. Binds.
  void start_from(const Exec& ex, const DecoderWeights& base, Arena& arena);
  // DoRA: computes 1 / ‖V‖ of every adapted projection; again whenever A or B changed. Nothing to do for other adapters.
  void bind(const Exec& ex, const DecoderWeights& base, Arena& arena);
  bool bound() const noexcept { return bound_; }
  const float* inverse_norms() const noexcept { return inverse_norms_.data(); }
  std::int64_t norm_count() const noexcept { return norms_; }
  std::int64_t bytes() const noexcept { return 4 * (size_ + norms_); }  // values and norms

  // f(name, shape, offset) for every tensor, ascending, under PEFT's key ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").
  template <class F>
  void for_each_tensor(F&& f) const {
    for (std::int64_t layer = 0; layer < layers_; ++layer)
      for (int p = 0; p < kProjections; ++p)
        if (const LoraPair* at = pair(layer, static_cast<Projection>(p))) {
          f(lora_a_name(module(layer, p)), std::vector<std::int64_t>{at->rank, at->inputs}, at->a);
          f(lora_b_name(module(layer, p)), std::vector<std::int64_t>{at->outputs, at->rank}, at->b);
          if (config_.dora) f(lora_magnitude_name(module(layer, p)), std::vector<std::int64_t>{at->outputs}, at->magnitude);
        }
    if (embedding_ >= 0) f(saved_module_name(kEmbeddingPath), std::vector<std::int64_t>{vocab_, hidden_}, embedding_);
    if (head_ >= 0) f(saved_module_name(kHeadPath), std::vector<std::int64_t>{vocab_, hidden_}, head_);
  }

 private:
  static std::string module(std::int64_t layer, int projection);
  enum class Values : std::uint8_t { zeros, none };
  LoraAdapter(const ModelSpec& model, const LoraConfig& config, const PeftAdapter* stored, Values values);
  std::optional<Matrix> saved(std::int64_t offset) const noexcept;
  LoraPair& at(std::int64_t layer, int projection) noexcept { return pairs_[static_cast<std::size_t>(layer * kProjections + projection)]; }

  LoraConfig config_;
  std::int64_t layers_ = 0, vocab_ = 0, hidden_ = 0;
  std::vector<LoraPair> pairs_;  // [layer][projection]; inputs 0 where there is none
  std::int64_t embedding_ = -1, head_ = -1;
  std::int64_t size_ = 0, norms_ = 0;  // elements
  std::vector<float> values_;
  std::vector<float> inverse_norms_;
  bool bound_ = false;
};

}  // namespace engine
