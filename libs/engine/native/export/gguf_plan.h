// gguf_plan.h: which tensors a GGUF file of a model has, under llama.cpp's names, in which types and with which changes to their numbers.
//   llama.cpp differs from Hugging Face in three places:
//   rotary rows   its llama graph rotates neighbouring pairs (2i, 2i + 1) of a head, Hugging Face the pairs (i, i + head_dim / 2): the rows of q and k
//                 are interleaved. Its qwen and gemma graphs rotate as Hugging Face does.
//   norms         Gemma's x · (1 + w) becomes x · w': one is added to the weights.
//   queries       its gemma graphs derive the scale of q·k from the head size. A model whose query_pre_attn_scalar asks for another has the
//                 difference multiplied into its queries (q_proj, or the norm after it).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/spec.h"

namespace engine {

// What llama.cpp calls a file type: the type of most matrices, and which ones get another.
//   q4_0     q4_0, the head (or tied embedding) q6_k
//   q4_k_m   q4_k; q6_k for the head and, in the first and last eighth of the layers and every third between, for v and down. (Where llama.cpp takes
//            q5_k, v of an 80-layer model with grouped queries, this takes q6_k.)
//   Rows that are no whole number of blocks fall back: q4_k → q5_0, q6_k → q8_0, any other → f16. Vectors are f32.
enum class GgufRecipe : std::uint8_t { f32, f16, q8_0, q4_0, q4_k_m };
std::string_view recipe_name(GgufRecipe recipe) noexcept;
// Throws invalid, naming the known ones.
GgufRecipe recipe_from_name(std::string_view name);

struct GgufTensorPlan {
  std::string name;                 // "blk.0.attn_q.weight"
  ParameterSpec source;             // Hugging Face's name and shape; the shape in the file is the same
  GgmlType type = GgmlType::f32;
  std::int64_t interleave = 0;      // the head size, where the rows of each head are interleaved; else 0
  float offset = 0, factor = 1;     // stored = (source + offset) · factor

  // Between the source's numbers and the file's, in place: whole rows (whole heads where interleaved), [rows, cols].
  void to_file(float* values, std::int64_t rows, std::int64_t cols) const;
  void from_file(float* values, std::int64_t rows, std::int64_t cols) const;
  std::int64_t row_granule() const noexcept { return interleave == 0 ? 1 : interleave; }
};

struct GgufPlan {
  std::string architecture;              // llama.cpp's: "llama", "qwen2", …
  std::int64_t context = 0;              // the longest sequence that llama.cpp computes as the model means it
  std::vector<GgufTensorPlan> tensors;   // in the file's order
  std::vector<float> rope_factors;       // llama3 scaling: rope_freqs.weight [head_dim / 2]; else empty
  GgufMetadata settings;                 // general.…, <architecture>.…
};

// Throws unsupported, naming the setting, for a model that llama.cpp cannot compute: biases or rotary scalings its graph of this family lacks,
// windows in a pattern it cannot be told.
//   Where its graph has no sliding window (all but Gemma 2 and 3), `context` ends at the window; with dynamic scaling it ends at the original context.
GgufPlan plan_gguf(const ModelSpec& spec, GgufRecipe recipe);

}  // namespace engine
