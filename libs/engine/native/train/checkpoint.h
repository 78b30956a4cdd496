// checkpoint.h: the files of a training checkpoint.
//   trainer_state.json      version, step, optimizer updates, random generator and the run's description
//   optimizer.safetensors   Optimizer::state()
//   adapter_model.safetensors + adapter_config.json (a PEFT folder), or parameters.safetensors (fp32) in full-parameter mode
//   Random numbers are counted, not drawn: seed and step say all about them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/exec.h"
#include "core/json.h"
#include "model/lora.h"
#include "model/spec.h"
#include "train/full_parameters.h"
#include "train/optimizer.h"

namespace engine {

struct TrainerOptions;

inline constexpr const char* kOptimizerFile = "optimizer.safetensors";

struct CheckpointState {
  Json run;  // describe_run of the trainer that wrote it
  std::int64_t step = 0, updates = 0;
};

// What must be the same for a continuation to mean anything: the model's shape, the method, optimizer, schedule, seed and precision.
Json describe_run(const ModelSpec& spec, Compute compute, const TrainerOptions& options);

// Into an existing (staged) folder. `optimizer` as Optimizer::state() gives it. One of adapter and full is not null.
void write_checkpoint(const std::filesystem::path& dir, const CheckpointState& state, const std::vector<NamedTensor>& optimizer, const LoraAdapter* adapter,
                      const FullParameters* full);

// Throws io or corrupt for files that are no checkpoint, invalid naming the first setting that differs from `run`.
CheckpointState read_checkpoint_state(const std::filesystem::path& dir, const Json& run);
// The trainable values, laid out like the adapter or the full parameters.
std::vector<float> read_checkpoint_values(const std::filesystem::path& dir, const LoraAdapter* adapter, const FullParameters* full);

}  // namespace engine
