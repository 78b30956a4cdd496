// plain_weights.h: the weights of a model folder as plain numbers, whatever way they are stored, with a LoRA adapter's update added when there is one.
//   W' = W + scale · B·A     W is the stored 16- or 32-bit weight, or the NF4 one dequantized and rounded to its own dtype: the very numbers the
//   adapter was trained on. The sum is fp32 and is not rounded here. DoRA: each row of the sum is given the length m.
//   A module that the adapter trained whole takes the place of the base's; where the base ties its head to the token table, a head of its own is then
//   listed last, as PEFT unties them.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/exec.h"
#include "formats/bnb_nf4.h"
#include "formats/hf_folder.h"
#include "formats/peft_adapter.h"

namespace engine {

struct PlainWeight {
  const TensorView* stored = nullptr;
  std::vector<std::int64_t> shape;
  Dtype dtype = Dtype::f32;             // as stored, or what the NF4 weight dequantizes to
  std::optional<Nf4Stored> nf4;
  const AdapterPair* update = nullptr;  // null: the adapter does not change it
  const TensorView* whole = nullptr;    // the adapter's own, in place of `stored`
  std::string own_name = {};            // of a head that the base does not store: a copy of its table, or `whole`

  const std::string& name() const noexcept { return own_name.empty() ? stored->name : own_name; }
  bool as_stored() const noexcept { return !nf4 && update == nullptr && whole == nullptr && own_name.empty(); }
  std::int64_t cols() const noexcept { return shape.empty() ? 1 : shape.back(); }
  std::int64_t rows() const { return cols() == 0 ? 0 : element_count(shape) / cols(); }
};

// Borrows the folder and the adapter (which may be null).
class PlainWeights {
 public:
  // Throws corrupt when the adapter changes a module that the base does not have or that has other dimensions, unsupported when a changed weight is
  // no f32, f16 or bf16, and what find_nf4 throws.
  PlainWeights(const HfFolder& model, const PeftAdapter* adapter);

  const std::vector<PlainWeight>& list() const noexcept { return weights_; }  // in the folder's order; parts of NF4 weights are not listed
  const PlainWeight& at(std::string_view name) const;                         // throws corrupt when absent
  bool any_nf4() const noexcept { return any_nf4_; }
  bool unties_head() const noexcept { return unties_head_; }  // config.json's tie_word_embeddings, if true, no longer holds

  // Rows [first, first + count) of a weight as fp32 [count, cols]; a vector is one row. The weight must be f32, f16, bf16 or NF4.
  void read_rows(const Exec& ex, const PlainWeight& weight, std::int64_t first, std::int64_t count, float* out) const;
  // Drops the weight's pages from this process after a streaming pass.
  void release(const PlainWeight& weight) const noexcept { model_.release(*weight.stored); }

 private:
  struct Factors {
    std::vector<float> a, b, magnitude;  // [rank, in], [out, rank], DoRA: [out]
  };
  void take_whole_modules();

  const HfFolder& model_;
  const PeftAdapter* adapter_;
  std::vector<PlainWeight> weights_;
  std::map<std::string_view, std::size_t> by_name_;
  bool any_nf4_ = false, unties_head_ = false;
  mutable const PlainWeight* factors_of_ = nullptr;  // the update read last, kept for the next rows of the same weight
  mutable Factors factors_;
};

}  // namespace engine
