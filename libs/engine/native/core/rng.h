// rng.h: Philox4x32-10 (Salmon et al., 2011), a counter-based generator: word = f(key, counter), no state to carry.
//   Any element of a stream can be computed alone, in any order, on any device, so a dropout mask need not be stored.
#pragma once

#include <array>
#include <cstdint>

namespace engine {

using PhiloxBlock = std::array<std::uint32_t, 4>;

constexpr PhiloxBlock philox4x32(std::uint64_t key, PhiloxBlock counter) noexcept {
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// One stream of words out of the many of a seed. Word i of (seed, stream) is lane i % 4 of the block at counter (i / 4, stream).
struct Philox {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;

  constexpr PhiloxBlock block(std::uint64_t index) const noexcept {
    return philox4x32(seed, {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), static_cast<std::uint32_t>(stream),
                             static_cast<std::uint32_t>(stream >> 32)});
  }
  constexpr std::uint32_t word(std::uint64_t i) const noexcept { return block(i / 4)[i % 4]; }

  // Uniform in [0, 1), 24 bits: exact in fp32.
  constexpr float uniform(std::uint64_t i) const noexcept { return static_cast<float>(word(i) >> 8) * 0x1p-24f; }
};

}  // namespace engine
