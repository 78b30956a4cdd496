// gguf_export.h: a Hugging Face model folder, or one with an adapter added, as one GGUF file that llama.cpp reads.
//   Streams: a chunk of 16 MiB of a tensor at a time, then two short forward passes of one layer at a time for the parity figure.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/exec.h"
#include "core/staged_output.h"
#include "export/gguf_parity.h"
#include "export/gguf_plan.h"
#include "formats/quantize_model.h"

namespace engine {

struct GgufExportOptions {
  GgufRecipe recipe = GgufRecipe::f16;
  std::optional<std::filesystem::path> adapter_dir = {};
  std::string name = {};                       // general.name; the folder's name when empty
  std::vector<std::uint32_t> probe = {};       // token ids the parity is measured on; a fixed sequence of 48 when empty
  IfExists if_exists = IfExists::refuse;
  ProgressFunction progress = {};              // may be empty; bytes of weights read, over writing and checking
  const CancelFlag* cancel = nullptr;
};

struct ExportedGguf {
  std::int64_t file_bytes = 0, tensors = 0;
  std::string architecture;                    // "llama", …
  std::string tokenizer;                       // "gpt2", "llama" or "no_vocab"
  std::int64_t context = 0;                    // GgufPlan::context
  std::string base;                            // "stored" or "nf4_dequantized": which numbers were written, or the adapter was added to
  GgufParity parity;                           // also in the file: medmesh.parity.…
};

// Writes `out` complete or not at all. Throws invalid when it exists and may not be replaced, unsupported when llama.cpp's graph, tokenizers or types cannot express the model
// (the setting is named), corrupt, io, cancelled, and what HfFolder, read_spec, PeftAdapter and parse_tokenizer_json throw.
ExportedGguf export_gguf(const Exec& ex, const std::filesystem::path& model_dir, const std::filesystem::path& out, const GgufExportOptions& options);

}  // namespace engine
