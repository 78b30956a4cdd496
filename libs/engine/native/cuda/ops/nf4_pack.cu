// nf4_pack.cu: a thread for each 16 bytes of the packed weight. Packing runs once, when a model is loaded; the dequantization reads 0.53 B and writes 2 B a
// value, so memory bandwidth is its limit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/nf4_decode.h"
#include "cuda/ops/nf4_pack.h"
#include "cuda/ops/nf4_tile.h"
#include "cuda/runtime/device_buffer.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

using namespace nf4;

constexpr unsigned kThreads = 256;
constexpr unsigned kMaximaBlocks = 128;  // of each part

struct Source {
  DeviceNf4 weight[3];
  std::int64_t blocks[3];  // scales of each
  std::int32_t first[4];
  std::int64_t cols, tiles;
  bool gated;
  float over_unit[3];
};

// maxima [part][kMaximaBlocks]: of the scales' magnitudes.
__global__ void __launch_bounds__(kThreads) largest_scales(Source s, float* maxima) {
  const unsigned part = blockIdx.y;
  float largest = 0;
  for (std::int64_t block = blockIdx.x * kThreads + threadIdx.x; block < s.blocks[part]; block += std::int64_t{kMaximaBlocks} * kThreads)
    largest = fmaxf(largest, fabsf(nf4_scale(s.weight[part], block)));
  largest = block_max(largest);
  if (threadIdx.x == 0) maxima[part * kMaximaBlocks + blockIdx.x] = largest;
}

// Rows that are not there have the first row's codes, with scales of zero.
__global__ void __launch_bounds__(kThreads) pack_codes(Source s, std::uint8_t* codes) {
  const std::int64_t blocks = s.cols / kBlock, unit = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (unit >= s.tiles * blocks * kWarp) return;
  const auto lane = static_cast<int>(unit % kWarp), tile = static_cast<int>(unit / kWarp / blocks);
  const std::int64_t block = unit / kWarp % blocks;
  uint2 rows[2];
  for (int half = 0; half < 2; ++half) {
    const TileRow at = tile_row(s.first, s.gated, tile, lane / 4 + 8 * half);
    const DeviceNf4& weight = s.weight[at.part < 0 ? 0 : at.part];
    rows[half] = *reinterpret_cast<const uint2*>(weight.codes + (at.part < 0 ? 0 : at.row) * (s.cols / 2) + block * (kBlock / 2) + 8 * (lane % 4));
  }
  store16(codes + 16 * unit, {rows[0].x, rows[0].y, rows[1].x, rows[1].y});
}

__global__ void __launch_bounds__(kThreads) pack_scales(Source s, std::uint32_t* scales) {
  const std::int64_t blocks = s.cols / kBlock, quads = ceil_div(blocks, kQuad), unit = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (unit >= s.tiles * quads * 8) return;
  const auto g = static_cast<int>(unit % 8), tile = static_cast<int>(unit / 8 / quads);
  const std::int64_t quad = unit / 8 % quads;
  std::uint32_t pairs[kQuad];
  for (int i = 0; i < kQuad; ++i) {
    const std::int64_t block = kQuad * quad + i;
    float pair[2] = {};
    for (int half = 0; half < 2; ++half) {
      const TileRow at = tile_row(s.first, s.gated, tile, g + 8 * half);
      if (at.part >= 0 && block < blocks) pair[half] = nf4_scale(s.weight[at.part], at.row * blocks + block) * s.over_unit[at.part];
    }
    pairs[i] = pack_f16(pair[0], pair[1]);
  }
  store16(scales + kQuad * unit, {pairs[0], pairs[1], pairs[2], pairs[3]});
}

__global__ void __launch_bounds__(kThreads) dequantize_packed(Source s, const std::uint8_t* codes, const std::uint32_t* scales, NfBook book, View<bf16> out) {
  const std::int64_t blocks = s.cols / kBlock, quads = ceil_div(blocks, kQuad), unit = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  const float value = book.value[lane_id() % 16];
  const bool there = unit < s.tiles * blocks * kWarp;  // all lanes stay: they hold each other's values
  const std::int64_t at = there ? unit : 0;
  const auto lane = static_cast<int>(at % kWarp), tile = static_cast<int>(at / kWarp / blocks);
  const std::int64_t block = at / kWarp % blocks;
  const uint4 raw = load16(codes + 16 * at);
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  float scale[2];
  unpack_f16(scales[((tile * quads + block / kQuad) * 8 + lane / 4) * kQuad + block % kQuad], scale[0], scale[1]);
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const TileRow to = tile_row(s.first, s.gated, tile, lane / 4 + 8 * (word / 2));
    const float own = scale[word / 2] / s.over_unit[to.part < 0 ? 0 : to.part];  // a power of two: exact
    float decoded[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) decoded[i] = shuffle(value, words[word] >> nf4_shift(i), 16) * own;
    if (there && to.part >= 0) store16(out.row(s.first[to.part] + to.row) + block * kBlock + 16 * (lane % 4) + 8 * (word % 2), pack8(decoded));
  }
}

Source source_of(const PackedNf4& packed) {
  Source s{};
  std::ranges::copy(packed.first, s.first);
  s.cols = packed.cols;
  s.tiles = packed.tiles;
  s.gated = packed.gated;
  for (std::size_t i = 0; i < 3; ++i) s.over_unit[i] = 1.0f / packed.unit[i];
  return s;
}

// The power of two that brings `largest` to [2^14, 2^15).
float unit_for(float largest) {
  require(std::isfinite(largest), "a weight's scales are not finite");
  if (largest == 0) return 1;
  return std::ldexp(1.0f, std::clamp(std::ilogb(largest) - 14, -120, 120));
}

}  // namespace

bool nf4_packs(std::int64_t cols) noexcept { return cols > 0 && cols % kBlock == 0; }

PackedNf4 take_packed(DeviceArena& arena, std::span<const std::int64_t> part_rows, std::int64_t cols, bool gated) {
  require(nf4_packs(cols), "a weight of ", cols, " columns; packed ones have multiples of ", kBlock);
  require(!part_rows.empty() && part_rows.size() <= 3, part_rows.size(), " matrices in a packed weight; there may be 1 to 3");
  require(!gated || (part_rows.size() == 2 && part_rows[0] == part_rows[1] && part_rows[0] % 8 == 0),
          "a gated weight has a gate and an up of the same rows, a multiple of 8");
  PackedNf4 packed;
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    packed.first[i] = static_cast<std::int32_t>(outputs);
    if (i < part_rows.size()) outputs += part_rows[i];
    require(outputs < std::int64_t{1} << 30, "a packed weight of ", outputs, " outputs");
  }
  packed.first[3] = static_cast<std::int32_t>(outputs);
  packed.cols = cols;
  packed.tiles = ceil_div(outputs, kTile);
  packed.gated = gated;
  const std::int64_t blocks = cols / kBlock;
  packed.codes = arena.take<std::uint8_t>((packed.tiles * blocks + kQuad - 1) * kBlockBytes);
  packed.scales = arena.take<std::uint32_t>(packed.tiles * ceil_div(blocks, kQuad) * 8 * kQuad);
  return packed;
}

void nf4_pack(const Nf4Parts& parts, PackedNf4& to, cudaStream_t stream) {
  Source s = source_of(to);
  unsigned count = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::int64_t rows = to.first[i + 1] - to.first[i];
    require(parts[i].data == nullptr ? rows == 0 : parts[i].rows == rows && parts[i].cols == to.cols, "a matrix of ", parts[i].rows, "x", parts[i].cols,
            " for a packed part of ", rows, "x", to.cols);
    if (rows == 0) continue;
    s.weight[i] = device_nf4(parts[i]);
    s.blocks[i] = rows * to.cols / kBlock;
    ++count;
  }
  if (to.tiles == 0) return;
  const DeviceBuffer<float> maxima(std::int64_t{3} * kMaximaBlocks);
  launch(stream, dim3(kMaximaBlocks, count), kThreads, 0, largest_scales, s, maxima.data());
  const std::vector<float> largest = maxima.read(stream);
  for (std::size_t i = 0; i < count; ++i) {
    const float* of = largest.data() + i * kMaximaBlocks;
    to.unit[i] = unit_for(*std::max_element(of, of + kMaximaBlocks));
    s.over_unit[i] = 1.0f / to.unit[i];
  }
  auto* codes = const_cast<std::uint8_t*>(to.codes);  // room that take_packed made is written here
  auto* scales = const_cast<std::uint32_t*>(to.scales);
  const std::int64_t blocks_of_k = to.cols / kBlock;
  launch(stream, blocks(ceil_div(to.tiles * blocks_of_k * kWarp, kThreads)), kThreads, 0, pack_codes, s, codes);
  launch(stream, blocks(ceil_div(to.tiles * ceil_div(blocks_of_k, kQuad) * 8, kThreads)), kThreads, 0, pack_scales, s, scales);
  fill_bytes(codes + to.tiles * blocks_of_k * kBlockBytes, 0, (kQuad - 1) * kBlockBytes, stream);
}

PackedNf4 nf4_tiles(const PackedNf4& gated) {
  require(gated.gated, "these tiles hold outputs in their order already");
  PackedNf4 tiles = gated;
  tiles.gated = false;
  tiles.first = {0, gated.first[3], gated.first[3], gated.first[3]};
  tiles.unit = {1, 1, 1};
  return tiles;
}

void nf4_dequantize(const PackedNf4& weight, View<bf16> out, cudaStream_t stream) {
  require(out.rows == weight.outputs() && out.cols == weight.cols, "the weight is ", weight.outputs(), "x", weight.cols, ", its scratch ", out.rows, "x", out.cols);
  launch(stream, blocks(ceil_div(weight.tiles * (weight.cols / kBlock) * kWarp, kThreads)), kThreads, 0, dequantize_packed, source_of(weight), weight.codes, weight.scales,
         nf4_book(), out);
}

}  // namespace engine::cuda
