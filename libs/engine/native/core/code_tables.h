// code_tables.h: the code books of bitsandbytes, entry by entry as its releases store them.
//   Copied values, never regenerated: torch.linspace rounds differently with the SIMD width, by up to 2 ulp in a quarter of the entries.
//   A reader uses the maps stored in a checkpoint; these are for writing and for optimizer state.
#pragma once

#include <array>
#include <cstdint>

namespace engine {

// Values that share one NF4 scale.
inline constexpr std::int64_t kNf4Block = 64;

// NF4: the value of each 4-bit code, ascending; kNf4[7] is 0.
extern const std::array<float, 16> kNf4;

// Decision threshold between code i and i + 1: a value goes up only if it is greater; a tie stays low.
extern const std::array<float, 15> kNf4Thresholds;

// Dynamic 8-bit maps, ascending. Signed: kDynamicSigned[127] is 0, the ends are -0.99296874 and 1 (there is no -1). Unsigned: [0] is 0.
extern const std::array<float, 256> kDynamicSigned;
extern const std::array<float, 256> kDynamicUnsigned;

}  // namespace engine
