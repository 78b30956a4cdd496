#include "cuda/train/run_memory.h"

#include <algorithm>

#include "cuda/ops/reduce.h"
#include "ops/dynamic8.h"

namespace engine::cuda {

void Ledger::note(std::string name, const DeviceArena& arena) {
  parts.push_back({std::move(name), arena.used() - noted_});
  noted_ = arena.used();
}

FixedMemory FixedMemory::take(DeviceArena& arena, const RunShape& shape, Ledger* ledger) {
  FixedMemory memory;
  const auto note = [&](const char* name) {
    if (ledger != nullptr) ledger->note(name, arena);
  };
  memory.weights = DeviceWeights::take(arena, shape.spec, shape.geometry, shape.format);
  note("base weights and head");
  memory.values = arena.take<float>(shape.trained());
  note("adapter, fp32");
  memory.gradients = arena.take<float>(shape.trained());
  note("gradients, fp32");
  if (shape.geometry.dora) memory.inverse_norms = arena.take<float>(shape.adapter.norm_count());
  note("norms of directions, fp32");
  for (const OptimizerRun& run : shape.runs) {
    OptimizerMemory& state = memory.optimizer.emplace_back();
    if (run.eight_bit) {
      const std::int64_t blocks = dynamic_blocks(run.size);
      state.m_codes = arena.take<std::uint8_t>(run.size);
      state.v_codes = arena.take<std::uint8_t>(run.size);
      state.m_absmax = arena.take<float>(blocks);
      state.v_absmax = arena.take<float>(blocks);
    } else {
      state.m = arena.take<float>(run.size);
      state.v = arena.take<float>(run.size);
    }
  }
  memory.constants = arena.take<AdamWConstants>(static_cast<std::int64_t>(shape.runs.size()));
  memory.scalars = arena.take<StepScalars>(1);
  memory.sum_workspace = arena.take_bytes(sum_of_squares_workspace());
  note("optimizer state");
  return memory;
}

StepInput StepInput::take(DeviceArena& arena, const ModelSpec& spec, std::int64_t tokens) {
  StepInput input;
  input.ids = arena.take<std::uint32_t>(tokens);
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) input.positions.push_back(arena.take<std::int32_t>(tokens));
  input.tiles = arena.take<AttentionTile>(most_attention_tiles(tokens, tokens));
  input.label_rows = arena.take<std::int32_t>(tokens);
  input.targets = arena.take<std::uint32_t>(tokens);
  input.weights = arena.take<float>(tokens);
  input.noise = arena.take<float>(tokens);
  input.seeds = arena.take<std::uint64_t>(2);
  return input;
}

std::int64_t StepInput::bytes(const ModelSpec& spec, std::int64_t tokens) {
  DeviceArena counting;
  take(counting, spec, tokens);
  return counting.used();
}

StepMemory StepMemory::take(DeviceArena& arena, const RunShape& shape, const MemoryChoice& choice, std::int64_t tokens, Ledger* ledger) {
  const ModelSpec& spec = shape.spec;
  const Geometry& geometry = shape.geometry;
  const auto note = [&](const char* name) {
    if (ledger != nullptr) ledger->note(name, arena);
  };
  StepMemory memory;
  memory.tokens = tokens;
  if (choice.embedding_on_device && shape.base_table()) memory.embedding = arena.take<bf16>(spec.vocab * spec.hidden);
  note("embedding");
  for (std::int64_t l = 0; l < choice.decoded; ++l) {
    DecodedLayer& layer = memory.stage.decoded.emplace_back();
    for (std::size_t g = 0; g < kGroups; ++g) layer.matrix[g] = arena.take<bf16>(geometry.groups[g].elements());
  }
  note("decoded weights");
  if (choice.decoded < spec.layers) {
    if (choice.scratch_for_each_group)
      for (std::size_t g = 0; g < kGroups; ++g) memory.stage.scratch[g] = arena.take<bf16>(geometry.groups[g].elements());
    else
      memory.stage.scratch.fill(arena.take<bf16>(geometry.largest_elements()));
  }
  note("weights being decoded");

  memory.input = static_cast<std::byte*>(arena.take_bytes(StepInput::bytes(spec, tokens)));
  for (const RopeParameters& rope : spec.ropes) {
    memory.cos.push_back(arena.take<float>(tokens * rope.rotary_dim / 2));
    memory.sin.push_back(arena.take<float>(tokens * rope.rotary_dim / 2));
  }
  note("micro-batch and rotations");

  const std::int64_t lowest = shape.lowest();
  std::vector<bf16*> passing;
  if (choice.offloaded > 0)
    for (std::int64_t i = 0; i < kOffloadBuffers; ++i) passing.push_back(arena.take<bf16>(tokens * spec.hidden));
  for (std::int64_t l = 0; l <= spec.layers; ++l) {
    if (l < lowest && l >= 2)
      memory.x.push_back(memory.x[static_cast<std::size_t>(l - 2)]);
    else if (l >= lowest && l - lowest < choice.offloaded)
      memory.x.push_back(passing[static_cast<std::size_t>((l - lowest) % kOffloadBuffers)]);
    else
      memory.x.push_back(arena.take<bf16>(tokens * spec.hidden));
  }
  memory.dx = arena.take<bf16>(tokens * (spec.hidden + geometry.tail(Group::o, Group::down)));
  note("layers' inputs");

  LayerBuffers shared;
  if (choice.kept + choice.partly < spec.layers) take_attention_buffers(arena, spec, geometry, tokens, shared);
  if (choice.kept < spec.layers) take_mlp_buffers(arena, spec, geometry, tokens, shared);
  note("activations computed again");
  for (std::int64_t l = 0; l < spec.layers; ++l) {
    LayerBuffers& layer = memory.layers.emplace_back(shared);
    take_adapter_buffers(arena, geometry, l, tokens, layer);
    if (l < lowest) continue;
    const Keep keep = choice.keep(l, shape);
    if (keep == Keep::all || keep == Keep::part) take_attention_buffers(arena, spec, geometry, tokens, layer);
    if (keep == Keep::all) take_mlp_buffers(arena, spec, geometry, tokens, layer);
  }
  note("activations kept");
  memory.work = take_work(arena, spec, geometry, tokens, std::min(choice.loss_rows, tokens));
  note("work and loss");
  return memory;
}

}  // namespace engine::cuda
