// nf4.h: 4-bit NormalFloat weights as bitsandbytes stores them.   w[i] = kNf4[code[i]] * absmax[i / 64]
//   Blocks of 64 run over the flattened tensor; the last may be shorter. codes: two per byte, the first in the high nibble.
//   Double quantization: absmax[i] = nested_map[codes8[i]] * nested_absmax[i / 256] + offset (ops/dynamic8.h has the 8-bit code).
#pragma once

#include <cstdint>
#include <vector>

#include "core/code_tables.h"
#include "core/code_tables.h"
#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

constexpr std::int64_t nf4_blocks(std::int64_t n) { return (n + kNf4Block - 1) / kNf4Block; }
constexpr std::int64_t nf4_bytes(std::int64_t n) { return (n + 1) / 2; }

// w fp32 [n] → packed [nf4_bytes(n)], absmax [nf4_blocks(n)].
// absmax is the largest |w| of the block; x = w * (1 / absmax) in fp32; the code is the number of thresholds below x (strictly).
// A block of zeros has absmax 0, so x is NaN, no threshold lies below it and every code is 0: the value -1 · 0.
// An odd n fills the last low nibble with 7, the code of 0. Throws invalid when a value is not finite.
void quantize_nf4(const Exec& ex, const float* w, std::int64_t n, std::uint8_t* packed, float* absmax);

// out[i] = kNf4[code[first + i]] * scale, one fp32 product; for i in [0, count). `first` may be any element of the tensor.
void dequantize_nf4(const std::uint8_t* packed, const Nf4Scales& scales, std::int64_t first, std::int64_t count, float* out);

// The scale of block i.
float nf4_scale(const Nf4Scales& scales, std::int64_t block) noexcept;

// Second level: absmax [blocks] → codes [blocks], nested_absmax [ceil(blocks / 256)], offset.   offset = mean(absmax), as fp32;
// absmax - offset is quantized in blocks of 256 with kDynamicSigned.
struct DoubleQuantized {
  std::vector<std::uint8_t> codes;
  std::vector<float> nested_absmax;
  float offset = 0;
};
DoubleQuantized double_quantize(const float* absmax, std::int64_t blocks);

}  // namespace engine
