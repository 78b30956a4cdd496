// nf4_tile.h: where the rows of a packed weight's tiles come from (nf4_pack.h), for kernels.
#pragma once

#include <cstdint>

#include "cuda/runtime/ptx.h"

namespace engine::cuda::nf4 {

inline constexpr int kTile = 16;          // outputs of a tile
inline constexpr int kBlock = 64;         // values of one scale
inline constexpr int kQuad = 4;           // blocks whose scales lie together
inline constexpr int kBlockBytes = 512;   // codes of a block of a tile

// Row r of a tile is row `row` of part `part`; beyond the last, {-1, 0}.
struct TileRow {
  int part, row;
};
// `first`: the output where each part begins, and their end.
ENGINE_DEVICE TileRow tile_row(const std::int32_t (&first)[4], bool gated, int tile, int r) {
  if (gated) {
    const int row = 8 * tile + r % 8;
    if (row >= first[1]) return {-1, 0};
    return {r / 8, row};
  }
  const int output = kTile * tile + r;
  if (output >= first[3]) return {-1, 0};
  const int part = output < first[1] ? 0 : output < first[2] ? 1 : 2;
  return {part, output - first[part]};
}

}  // namespace engine::cuda::nf4
