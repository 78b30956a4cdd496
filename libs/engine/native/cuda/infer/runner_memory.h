// runner_memory.h: what generation takes of a device's memory, decided before anything is taken.
//   In this order: the base, the buffers of a step, room for adapters, a bf16 copy of every NF4 product if a working cache is left then, and the rest for
//   keys and values.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/infer/products.h"
#include "cuda/infer/runner_input.h"
#include "cuda/model/device_weights.h"
#include "infer/runner.h"

namespace engine::cuda {

// What is left to the driver, to kernels that are loaded when first used, to the products' library and to whoever else computes on the device.
inline constexpr std::int64_t kLeftFree = std::int64_t{1} << 30;

// Buffers of a step of R rows, all bf16 unless float. [R, …]
struct StepBuffers {
  bf16 *x, *normed, *qkv, *attention, *gate_up, *gated, *sub, *low;  // sub: [R, hidden] a sub-layer's output before its norm; null without such norms
  float* head_rstd;                                                  // [R, heads + kv_heads]
  bf16* scratch;                                                     // the largest decoded product; null where none is needed
  void *gemv_workspace, *attention_workspace;                        // zeroed once
  std::int64_t gemv_workspace_bytes, attention_workspace_bytes;
  void* prefill_workspace;                                           // null where attention of prompts needs none
  std::int64_t attention_rows;                                       // that one call of attention takes
  bf16* last;                                                        // [W, hidden] wanted rows
  float* logits;                                                     // [W, vocab]
  void* sample_workspace;
  std::uint32_t* tokens;                                             // [W]
  float *logprobs, *scores;                                          // [W]
  std::int64_t wanted_rows;                                          // W, of one pass over the head
  void* input;
  std::int64_t input_bytes;
};

struct RunnerMemory {
  DeviceWeights weights;
  bf16* embedding = nullptr;  // the head where they are tied
  StepBuffers buffers{};

  struct Choices {
    bool decoded = false;
    std::int64_t most_ranks = 256;
  };
  static RunnerMemory take(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, const RunnerOptions& options,
                           const Choices& choices);
};

struct RunnerPlan {
  std::int64_t fixed = 0;    // RunnerMemory
  std::int64_t tables = 0;   // rotary tables and the adapters' table
  std::int64_t decoded = 0;  // 0: no copies are kept
  std::int64_t adapters = 0;
  std::int64_t kv = 0;
  std::int64_t budget = 0;
  std::string table;         // for people
};

// Bytes of the copies of all NF4 products.
std::int64_t decoded_bytes(const Geometry& geometry, const BaseFormat& format);
// The most that one step's input takes.
StepSizes largest_step(const ModelSpec& spec, const RunnerOptions& options);

// Throws oom with the numbers when the budget does not suffice.
RunnerPlan plan_runner(const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, const RunnerOptions& options, std::int64_t free_bytes);

}  // namespace engine::cuda
