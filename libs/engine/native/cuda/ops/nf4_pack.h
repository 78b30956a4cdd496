// nf4_pack.h: NF4 weights as generation's products read them: tiles of 16 outputs, contiguous along K.
//   A packed weight is up to three matrices [N_p, K] of one K, one below another; K is a multiple of 64, a block of the format. Tile i holds outputs
//   16·i … 16·i + 15 of all of them; of a gated product [gate | up] it holds rows 8·i … 8·i + 7 of gate, then the same of up.
//     codes   [tile][K / 64][lane 32][16 bytes]        lane (g, t) = (lane / 4, lane % 4): the 16 codes k = 16t … of row g of the tile, then of row g + 8
//     scales  [tile][⌈K / 256⌉][g 8][block 4][2 fp16]  of rows g and g + 8; zero for blocks beyond K and for rows that are not there
//   So a warp's lanes read 16 × 64 weights by one load of 16 bytes each, a block after another; what the lanes hold is the A operand of mma.m16n8k16 (which k
//   a place of the operand means is free, as long as the other operand agrees). Three blocks more may be read behind the last.
//   scale = fp16 · unit, double quantization resolved; `unit` is a power of two for each matrix, which brings its largest scale to [2^14, 2^15). So a scale's
//   relative error is at most 2^-11, and larger only for scales below 2^-28 of the largest.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "cuda/runtime/memory.h"
#include "ops/matrix.h"

namespace engine::cuda {

// Matrices of dtype nf4 in device memory, one below another, codes 16-byte aligned. Unused ones have no data.
using Nf4Parts = std::array<Matrix, 3>;

struct PackedNf4 {
  const std::uint8_t* codes = nullptr;
  const std::uint32_t* scales = nullptr;
  std::int64_t cols = 0, tiles = 0;
  std::array<std::int32_t, 4> first{};  // the output where each part begins, and their end
  std::array<float, 3> unit{1, 1, 1};
  bool gated = false;

  std::int64_t outputs() const noexcept { return first[3]; }
};

// Whether matrices of so many columns can be packed.
bool nf4_packs(std::int64_t cols) noexcept;

// Room for parts of these numbers of rows (null pointers while the arena counts). A gated weight has two parts of the same rows, a multiple of 8.
PackedNf4 take_packed(DeviceArena& arena, std::span<const std::int64_t> part_rows, std::int64_t cols, bool gated);

// Fills the room, and the units. Waits for the stream.
void nf4_pack(const Nf4Parts& parts, PackedNf4& to, cudaStream_t stream);

// A weight packed for a gated product as one for a plain product of 2F outputs, in the order in which its tiles hold them: 8 of gate, the same 8 of up, and so
// on. Results are to be multiplied by `gated.unit` of gate and of up: theirs differ.
PackedNf4 nf4_tiles(const PackedNf4& gated);

// out [outputs, cols] in the order of the outputs (all of gate, then all of up).   out = bf16(kNf4[code] · scale), one fp32 product rounded once
//   The scales are the packed ones: within 2^-11 of what nf4_dequantize (nf4.h) makes of the matrices, before rounding. Asynchronous on `stream`.
void nf4_dequantize(const PackedNf4& weight, View<bf16> out, cudaStream_t stream);

}  // namespace engine::cuda
