// merge_adapter.h: a base and its LoRA adapter to one plain model folder that transformers loads.   W' = round(W + scale · B·A)
//   W is the stored 16- or 32-bit weight, or the NF4 one dequantized and rounded to its own dtype: the very numbers the adapter was trained on.
//   The sum is fp32, rounded once to the base's dtype (bf16, f16, or f32 where the base is f32). Streams, a chunk of rows at a time.
//   DoRA: each row of W + scale · B·A is given the length m. Modules trained whole take the place of the base's; a base whose head is tied to the token
//   table then gets one of its own, and tie_word_embeddings becomes false, as in PEFT.
#pragma once

#include <string>

#include "formats/quantize_model.h"

namespace engine {

struct MergeOptions {
  IfExists if_exists = IfExists::refuse;
  std::int64_t max_shard_bytes = kMaxShardBytes;
  ProgressFunction progress = {};  // may be empty; bytes of the output
  const CancelFlag* cancel = nullptr;
};

struct MergedModel {
  std::int64_t weight_bytes = 0;
  std::string base;  // "nf4_dequantized" or "stored": which numbers the adapter was added to; also in the files' metadata as merged_into
};

// Writes `out_dir` complete or not at all. Throws invalid when out_dir is taken and may not be replaced, corrupt when a module of the adapter is not in the
// base or does not fit it, io, cancelled, and what HfFolder and PeftAdapter throw.
MergedModel merge_adapter(const Exec& ex, const std::filesystem::path& model_dir, const std::filesystem::path& adapter_dir,
                          const std::filesystem::path& out_dir, const MergeOptions& options);

}  // namespace engine
