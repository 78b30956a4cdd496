// multiply.cpp: one warp's mma.m16n8k16 (the layout is in ptx.h). Products are exact in fp32; the sum over k is fp32, in the order of k.
#include <cstring>

#include "cuda/runtime/ptx.h"

namespace engine::cuda::emulation {
namespace {

// `widen` makes a float of 16 bits.
template <class Widen>
void multiply_pairs(const std::byte* slots, std::byte* results, Widen widen) {
  float a[16][16], b[16][8], d[16][8] = {};
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = 2 * (lane % 4);
    std::uint32_t r[6];
    std::memcpy(r, slots + lane * kSlotBytes, sizeof r);
    const auto low = [&](std::uint32_t pair) { return widen(static_cast<std::uint16_t>(pair)); };
    const auto high = [&](std::uint32_t pair) { return widen(static_cast<std::uint16_t>(pair >> 16)); };
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = g + 8 * (i % 2), column = t + 8 * (i / 2);
      a[row][column] = low(r[i]);
      a[row][column + 1] = high(r[i]);
    }
    for (unsigned i = 0; i < 2; ++i) {
      b[t + 8 * i][g] = low(r[4 + i]);
      b[t + 8 * i + 1][g] = high(r[4 + i]);
    }
  }
  for (unsigned m = 0; m < 16; ++m)
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = 2 * (lane % 4);
    const float mine[4] = {d[g][t], d[g][t + 1], d[g + 8][t], d[g + 8][t + 1]};
    std::memcpy(results + lane * kSlotBytes, mine, sizeof mine);
  }
}

}  // namespace

void multiply_fragments(const std::byte* slots, std::byte* results) {
  multiply_pairs(slots, results, [](std::uint16_t bits) { return to_float(bf16{bits}); });
}

void multiply_fragments_f16(const std::byte* slots, std::byte* results) {
  multiply_pairs(slots, results, [](std::uint16_t bits) { return to_float(f16{bits}); });
}

}  // namespace engine::cuda::emulation
