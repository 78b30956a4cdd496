#include "ops/dynamic8.h"

#include <bit>
#include <cmath>
#include <limits>

#include "core/code_tables.h"

namespace engine {
namespace {

Dynamic8Lookup make_lookup(const std::array<float, 256>& map) {
  Dynamic8Lookup lookup;
  for (std::size_t i = 0; i < 255; ++i) lookup.middle[i] = (map[i] + map[i + 1]) * 0.5f;
  lookup.middle[255] = std::numeric_limits<float>::infinity();
  // A bin is [low, high) for positive x and (-high, -low] for negative; its first code is that of the midpoints below all of it.
  for (std::int32_t bin = Dynamic8Lookup::kFirstBin; bin <= Dynamic8Lookup::kLastBin; ++bin) {
    const bool lowest = bin == Dynamic8Lookup::kFirstBin;  // this one reaches down to 0
    const float low = lowest ? 0.0f : std::bit_cast<float>(bin << 16), high = std::bit_cast<float>((bin + 1) << 16);
    std::int32_t below_positive = 0, below_negative = 0;
    for (std::size_t i = 0; i < 255; ++i) {
      below_positive += lookup.middle[i] < low;
      below_negative += lookup.middle[i] <= -high;
    }
    const auto at = static_cast<std::size_t>(bin - Dynamic8Lookup::kFirstBin);
    lookup.positive[at] = below_positive;
    lookup.negative[at] = below_negative;
  }
  return lookup;
}

}  // namespace

const Dynamic8Lookup& signed_lookup() {
  static const Dynamic8Lookup lookup = make_lookup(kDynamicSigned);
  return lookup;
}

const Dynamic8Lookup& unsigned_lookup() {
  static const Dynamic8Lookup lookup = make_lookup(kDynamicUnsigned);
  return lookup;
}

std::uint8_t nearest_code(const std::array<float, 256>& map, float x) noexcept {
  // The largest entry not above x, by steps from the middle; then whichever of it and its upper neighbour is nearer.
  int low = 0;
  for (int step = 128; step > 0; step /= 2)
    if (low + step < 256 && map[static_cast<std::size_t>(low + step)] <= x) low += step;
  if (low == 255) return 255;
  const float middle = (map[static_cast<std::size_t>(low)] + map[static_cast<std::size_t>(low + 1)]) * 0.5f;
  return static_cast<std::uint8_t>(x > middle ? low + 1 : low);
}

void quantize_dynamic8(const std::array<float, 256>& map, const float* values, std::int64_t n, std::uint8_t* codes, float* absmax) {
  for (std::int64_t begin = 0; begin < n; begin += kDynamicBlock) {
    const std::int64_t end = n - begin < kDynamicBlock ? n : begin + kDynamicBlock;
    float largest = 0;
    for (std::int64_t i = begin; i < end; ++i) largest = std::fmax(largest, std::fabs(values[i]));
    absmax[begin / kDynamicBlock] = largest;
    const float reciprocal = largest > 0 ? 1.0f / largest : 0.0f;
    for (std::int64_t i = begin; i < end; ++i) codes[i] = nearest_code(map, values[i] * reciprocal);
  }
}

void dequantize_dynamic8(const std::array<float, 256>& map, const std::uint8_t* codes, const float* absmax, std::int64_t n, float* values) {
  for (std::int64_t i = 0; i < n; ++i) values[i] = map[codes[i]] * absmax[i / kDynamicBlock];
}

}  // namespace engine
