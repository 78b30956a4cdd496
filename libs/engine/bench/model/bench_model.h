// bench_model.h: a model folder with a real model's shape and random weights, and what its products cost.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/spec.h"

namespace engine::bench {

// The shapes that can be asked for: "tiny" (for trying the program), "0.5b", "1.5b", "3b", "7b" of Qwen2.5. Throws invalid for another name.
std::string shape_config(const std::string& shape);

// `dir`/bf16: written once with random weights, a chunk at a time, and found again by later runs. Throws io, invalid.
std::filesystem::path ensure_bf16_model(const std::filesystem::path& dir, const std::string& shape);
// `dir`/nf4: the same quantized.
std::filesystem::path ensure_nf4_model(const std::filesystem::path& dir, const std::string& shape);

// Multiply-adds x 2.
struct Work {
  double blocks;     // all linears of all blocks, per token
  double head;       // the output matrix, per token
  double attention;  // scores and sums of the forward over `tokens` causal tokens
};
Work work_of(const ModelSpec& spec, std::int64_t tokens);

}  // namespace engine::bench
