// quantize_model.h: a 16- or 32-bit model folder to an NF4 one, as bitsandbytes and transformers write it.
//   The linears of the blocks (model.layers.….…_proj.weight) become NF4; embeddings, norms, biases and lm_head keep their stored type.
//   Streams: holds a chunk of 16 MiB, its codes and one matrix's scales (1/16 of a byte per weight), never a whole matrix.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "core/staged_output.h"
#include "formats/model_writer.h"

namespace engine {

// done and total in bytes of the input's weights; called between chunks, on the calling thread.
using ProgressFunction = std::function<void(std::int64_t done, std::int64_t total)>;

struct QuantizeOptions {
  bool double_quant = true;
  // Linears left in their stored type: whole paths ("model.layers.0.mlp.down_proj"), their beginnings ("model.layers.0") or last parts ("down_proj").
  // Written as llm_int8_skip_modules, with every kept linear by its whole path: transformers takes the entries for patterns.
  std::vector<std::string> skip_modules = {};
  IfExists if_exists = IfExists::refuse;
  std::int64_t max_shard_bytes = kMaxShardBytes;
  ProgressFunction progress = {};         // may be empty
  const CancelFlag* cancel = nullptr;
};

struct QuantizedModel {
  std::int64_t weight_bytes = 0;  // of all tensors written
  std::int64_t tensors = 0;
  std::int64_t quantized = 0;     // matrices that became NF4
};

// True for the weight of a linear inside a block.
bool is_block_linear(std::string_view tensor_name);

// Writes `out_dir` complete (weights, config.json with its quantization_config, tokenizer and generation files) or not at all.
// Throws invalid when out_dir is taken and may not be replaced, unsupported when the model is already quantized, corrupt for a weight that is not finite, io, cancelled;
// invalid when an entry of skip_modules matches no linear.
QuantizedModel quantize_model(const Exec& ex, const std::filesystem::path& model_dir, const std::filesystem::path& out_dir, const QuantizeOptions& options);

}  // namespace engine
