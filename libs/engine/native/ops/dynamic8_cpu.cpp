#include "ops/dynamic8.h"

#include <cmath>

namespace engine {

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
