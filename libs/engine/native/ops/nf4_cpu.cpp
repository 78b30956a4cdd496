#include "ops/nf4.h"

#include <atomic>
#include <cmath>

#include "core/code_tables.h"
#include "core/error.h"
#include "ops/dispatch.h"
#include "ops/dynamic8.h"
#include "ops/nf4_rows.h"
#include "ops/torch_sum.h"

namespace engine {
namespace {

// Codes of up to 64 values, one per byte; returns the block's absmax, or NaN when a value is not finite.
float quantize_block(const float* w, std::int64_t n, std::uint8_t* codes) {
  float absmax = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(w[i]);
    absmax = std::fmax(absmax, std::fabs(w[i]));
  }
  if (!finite) return std::nanf("");
  const float reciprocal = 1.0f / absmax;
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = w[i] * reciprocal;
    std::uint8_t code = 0;
    for (const float threshold : kNf4Thresholds) code += x > threshold;
    codes[i] = code;
  }
  return absmax;
}

void decode_block(const std::uint8_t* packed, float scale, float* out) {
  for (int i = 0; i < 32; ++i) {
    out[2 * i] = kNf4[packed[i] >> 4] * scale;
    out[2 * i + 1] = kNf4[packed[i] & 15] * scale;
  }
}

}  // namespace

const Nf4Rows nf4_rows_scalar = {quantize_block, decode_block};

float nf4_scale(const Nf4Scales& scales, std::int64_t block) noexcept {
  if (scales.absmax != nullptr) return scales.absmax[block];
  return scales.nested_map[scales.codes[block]] * scales.nested_absmax[block / kDynamicBlock] + scales.offset;
}

void quantize_nf4(const Exec& ex, const float* w, std::int64_t n, std::uint8_t* packed, float* absmax) {
  const Nf4Rows& rows = ENGINE_ROWS(ex.isa, nf4_rows);
  std::atomic<bool> finite{true};
  ex.pool.for_ranges(nf4_blocks(n), 256, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kNf4Block, count = n - begin < kNf4Block ? n - begin : kNf4Block;
      std::uint8_t codes[kNf4Block];
      absmax[block] = rows.quantize_block(w + begin, count, codes);
      if (std::isnan(absmax[block])) finite.store(false, std::memory_order_relaxed);
      if (count % 2 != 0) codes[count] = 7;
      for (std::int64_t i = 0; i < count; i += 2) packed[(begin + i) / 2] = static_cast<std::uint8_t>((codes[i] << 4) | codes[i + 1]);
    }
  });
  require(finite.load(), "a weight to quantize holds a value that is not finite; repair or re-export the model");
}

void dequantize_nf4(const std::uint8_t* packed, const Nf4Scales& scales, std::int64_t first, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t at = first + i;
    const std::uint8_t byte = packed[at / 2];
    out[i] = kNf4[at % 2 == 0 ? byte >> 4 : byte & 15] * nf4_scale(scales, at / kNf4Block);
  }
}

DoubleQuantized double_quantize(const float* absmax, std::int64_t blocks) {
  DoubleQuantized result;
  result.offset = blocks == 0 ? 0.0f : torch_sum(absmax, blocks) / static_cast<float>(blocks);
  std::vector<float> centred(static_cast<std::size_t>(blocks));
  for (std::int64_t i = 0; i < blocks; ++i) centred[static_cast<std::size_t>(i)] = absmax[i] - result.offset;
  result.codes.resize(static_cast<std::size_t>(blocks));
  result.nested_absmax.resize(static_cast<std::size_t>(dynamic_blocks(blocks)));
  quantize_dynamic8(kDynamicSigned, centred.data(), blocks, result.codes.data(), result.nested_absmax.data());
  return result;
}

}  // namespace engine
