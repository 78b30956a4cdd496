// dynamic8.h: bitsandbytes' blockwise 8-bit code with a dynamic map.   value[i] = map[code[i]] * absmax[i / 256]
//   The code is the entry of the map nearest to value / absmax; exactly half way stays at the entry that the binary search of
//   bitsandbytes stops at.
#pragma once

#include <array>
#include <cstdint>

namespace engine {

inline constexpr std::int64_t kDynamicBlock = 256;

constexpr std::int64_t dynamic_blocks(std::int64_t n) { return (n + kDynamicBlock - 1) / kDynamicBlock; }

// Index of the entry of an ascending 256-entry map nearest to x.
std::uint8_t nearest_code(const std::array<float, 256>& map, float x) noexcept;

// nearest_code by two look-ups, for vector kernels: the bf16 prefix of |x| picks a bin that holds at most one midpoint of the map.
//   code = first + (x > middle[first]),  first = (x < 0 ? negative : positive)[clamp(bits(|x|) >> 16, kFirstBin, kLastBin) - kFirstBin]
// Valid for |x| <= 1.
struct Dynamic8Lookup {
  static constexpr std::int32_t kFirstBin = 0x3400;  // 2^-23, below half of the smallest entry
  static constexpr std::int32_t kLastBin = 0x3f80;   // 1
  std::array<float, 256> middle;                     // [255] is infinity
  std::array<std::int32_t, kLastBin - kFirstBin + 1> positive, negative;
};
const Dynamic8Lookup& signed_lookup();
const Dynamic8Lookup& unsigned_lookup();

// values [n] → codes [n], absmax [dynamic_blocks(n)]. A block of zeros has absmax 0 and the code of 0.
void quantize_dynamic8(const std::array<float, 256>& map, const float* values, std::int64_t n, std::uint8_t* codes, float* absmax);
void dequantize_dynamic8(const std::array<float, 256>& map, const std::uint8_t* codes, const float* absmax, std::int64_t n, float* values);

}  // namespace engine
