// runner_input.h: what the device reads of one step, in one block that is copied to it at once. R rows, S sequences, W wanted rows.
#pragma once

#include <cstdint>

#include "cuda/ops/paged_attention.h"
#include "cuda/ops/sample.h"
#include "cuda/runtime/memory.h"

namespace engine::cuda {

struct StepSizes {
  std::int64_t rows = 0, sequences = 0, table_stride = 0, tiles = 0, wanted = 0;
};

struct RunnerInput {
  std::uint32_t* ids;             // [R]
  std::int32_t* positions;        // [R]
  std::int32_t* sequences;        // [R] rows of tables; -1: a row that fills up a captured batch
  std::int32_t* numbers;          // [R] 0, 1, …: rows of tables that rotate by row
  std::int32_t* adapters;         // [R] numbers in the adapters' table, or -1
  std::int32_t* other_adapters;   // [R] the same with -1 for rows of segments
  std::int32_t* tables;           // [S, table_stride]
  PagedChunk* tiles;              // [tiles]
  std::int32_t* wanted;           // [W] rows
  SampleSettings* settings;       // [W]
  std::int32_t* token_positions;  // [W] of the token to be chosen; -1: none is
  std::int32_t* scored;           // [W] 0 where targets is to be scored, else -1
  std::uint32_t* targets;         // [W]

  static RunnerInput take(DeviceArena& arena, const StepSizes& sizes) {
    RunnerInput input{};
    input.ids = arena.take<std::uint32_t>(sizes.rows);
    for (std::int32_t** list : {&input.positions, &input.sequences, &input.numbers, &input.adapters, &input.other_adapters}) *list = arena.take<std::int32_t>(sizes.rows);
    input.tables = arena.take<std::int32_t>(sizes.sequences * sizes.table_stride);
    input.tiles = arena.take<PagedChunk>(sizes.tiles);
    input.wanted = arena.take<std::int32_t>(sizes.wanted);
    input.settings = arena.take<SampleSettings>(sizes.wanted);
    input.token_positions = arena.take<std::int32_t>(sizes.wanted);
    input.scored = arena.take<std::int32_t>(sizes.wanted);
    input.targets = arena.take<std::uint32_t>(sizes.wanted);
    return input;
  }
  static std::int64_t bytes(const StepSizes& sizes) {
    DeviceArena counter;
    take(counter, sizes);
    return counter.used();
  }
};

}  // namespace engine::cuda
