// run_memory.h: every buffer of a training run on one device, laid out by the same code that counts them.
//   FixedMemory is taken once for a run; StepMemory follows from a choice (memory_plan.h) and the longest micro-batch, and is taken again when that grows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/model/activations.h"
#include "cuda/model/device_weights.h"
#include "cuda/model/weight_stage.h"
#include "cuda/ops/attention.h"
#include "cuda/runtime/memory.h"
#include "ops/adamw_rows.h"
#include "train/micro_step.h"
#include "train/optimizer.h"

namespace engine::cuda {

// What sizes follow from. Borrows everything.
struct RunShape {
  const ModelSpec& spec;
  const Geometry& geometry;
  const BaseFormat& format;
  const std::vector<OptimizerRun>& runs;
  const LoraAdapter& adapter;  // its layout

  std::int64_t trained() const noexcept { return adapter.size(); }              // values
  std::int64_t lowest() const noexcept { return lowest_trained_layer(&adapter); }  // the layer at which the backward ends: those below keep nothing
  std::int64_t trained_layers() const noexcept { return spec.layers - lowest(); }
  // Whether there is a token table of the base's beside the head: not where the adapter has its own, or the base's head is the table.
  bool base_table() const noexcept { return adapter.embedding_offset() < 0 && !(spec.tied && adapter.head_offset() < 0); }
};

// How memory is spent where there is a choice.
struct MemoryChoice {
  std::int64_t kept = 0;       // the last layers keep everything,
  std::int64_t partly = 0;     // those before them all but the MLP's inner activations,
  std::int64_t offloaded = 0;  // and the first that the backward comes to put their inputs into host memory; the rest keep their inputs
  std::int64_t decoded = 0;    // the first layers' weights are kept decoded
  bool scratch_for_each_group = false;  // else one matrix for all
  bool embedding_on_device = false;
  std::int64_t loss_rows = 0;  // labelled rows whose logits exist at once

  // Of a layer at or above the lowest that the backward comes to.
  Keep keep(std::int64_t layer, const RunShape& shape) const noexcept {
    if (layer >= shape.spec.layers - kept) return Keep::all;
    if (layer >= shape.spec.layers - kept - partly) return Keep::part;
    return layer - shape.lowest() < offloaded ? Keep::host : Keep::input;
  }
};

// Names of parts and the bytes they take, in the order they are taken.
struct Ledger {
  struct Part {
    std::string name;
    std::int64_t bytes = 0;
  };
  std::vector<Part> parts;
  // Everything taken from `arena` since the last note.
  void note(std::string name, const DeviceArena& arena);

 private:
  std::int64_t noted_ = 0;
};

// fp32 or 8-bit state of one run of the optimizer; the other's pointers are null.
struct OptimizerMemory {
  float *m = nullptr, *v = nullptr;
  std::uint8_t *m_codes = nullptr, *v_codes = nullptr;
  float *m_absmax = nullptr, *v_absmax = nullptr;
};

// What a step computes besides activations, read back at its end.
struct StepScalars {
  double loss = 0, sum_of_squares = 0;
  float clip_scale = 0, gradient_norm = 0;
};

struct FixedMemory {
  DeviceWeights weights;
  float *values = nullptr, *gradients = nullptr;  // [trained]
  float* inverse_norms = nullptr;                 // [adapter.norm_count()], DoRA's
  std::vector<OptimizerMemory> optimizer;         // one for each run
  AdamWConstants* constants = nullptr;            // [runs]
  StepScalars* scalars = nullptr;
  void* sum_workspace = nullptr;

  static FixedMemory take(DeviceArena& arena, const RunShape& shape, Ledger* ledger = nullptr);
};

// What the host tells the device about one micro-batch, in one block that lies alike in pinned and in device memory.
struct StepInput {
  std::uint32_t* ids = nullptr;           // [T]
  std::vector<std::int32_t*> positions;   // [T] for each rope
  AttentionTile* tiles = nullptr;
  std::int32_t* label_rows = nullptr;     // [T], those labelled
  std::uint32_t* targets = nullptr;       // [T]
  float* weights = nullptr;               // [T]
  float* noise = nullptr;                 // [T], magnitude of NEFTune's
  std::uint64_t* seeds = nullptr;         // dropout's, NEFTune's
  std::int64_t tokens = 0, tile_count = 0, labels = 0;  // of the micro-batch, what fills it up included

  static StepInput take(DeviceArena& arena, const ModelSpec& spec, std::int64_t tokens);
  static std::int64_t bytes(const ModelSpec& spec, std::int64_t tokens);
};

inline constexpr std::int64_t kOffloadBuffers = 3;  // being filled, being used, on its way

struct StepMemory {
  std::int64_t tokens = 0;
  bf16* embedding = nullptr;   // [vocab, hidden]; null when tied or in host memory
  StageMemory stage;
  std::byte* input = nullptr;  // StepInput::bytes
  std::vector<float*> cos, sin;  // of each rope, [tokens, rotary_dim / 2]
  std::vector<bf16*> x;        // [layers + 1]: inputs of the layers and the last output, [T, hidden]; offloaded layers share kOffloadBuffers, and layers that
                               // the backward does not come to take turns with two
  bf16* dx = nullptr;          // [T, hidden, tail of o and down]
  std::vector<LayerBuffers> layers;
  WorkBuffers work;

  static StepMemory take(DeviceArena& arena, const RunShape& shape, const MemoryChoice& choice, std::int64_t tokens, Ledger* ledger = nullptr);
};

}  // namespace engine::cuda
