// The super-blocks of 256 values: small groups with small integer scales under one f16 scale.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "formats/gguf_blocks.h"

namespace engine {
namespace {

constexpr int kSuper = 256;
constexpr float kNothing = 1e-15f;  // a group below this everywhere is zero

float as_f16(float value) {
  std::array<std::uint8_t, 2> stored{};
  from_f32(Dtype::f16, &value, 1, stored.data());
  to_f32(Dtype::f16, stored.data(), 1, &value);
  return value;
}

// To the nearest whole number, ties to even, as nearbyintf but without a call: a float that large has no fraction. Exact below 2^22; beyond it every use
// here clamps the result.
float round_even(float value) {
  constexpr float kNoFraction = 12582912.0f;  // 1.5 · 2^23
  return (value + kNoFraction) - kNoFraction;
}
int nearest(float value) { return static_cast<int>(round_even(value)); }

// ---- q4_k: eight groups of 32, each w ≈ scale·q − minimum with q in 0 … 15 and both parameters not negative

constexpr int kGroup4 = 32, kGroups4 = kSuper / kGroup4, kLevels4 = 15;

struct Affine {
  float scale = 0, minimum = 0;            // w = scale·q − minimum
  std::array<float, kGroup4> codes = {};  // q
};

// The scale and minimum of least Σ wᵢ (scale·qᵢ − minimum − xᵢ)², over codes from a handful of trial scales. Importance wᵢ = rms + |xᵢ|. The order of
// every operation is the reference's, and so is that a trial counts its levels from the best minimum so far.
Affine fit_affine(const float* x) {
  float square = 0, low = 0, high = x[0];
  for (int i = 0; i < kGroup4; ++i) {
    square += x[i] * x[i];
    low = std::min(low, x[i]);  // the minimum is stored without a sign: the range must reach zero
    high = std::max(high, x[i]);
  }
  if (high <= low) return {0, -low};
  std::array<float, kGroup4> weight;
  const float rms = std::sqrt(square / kGroup4);
  float w_sum = 0, x_sum = 0;
  for (int i = 0; i < kGroup4; ++i) {
    weight[static_cast<std::size_t>(i)] = rms + std::fabs(x[i]);
    w_sum += weight[static_cast<std::size_t>(i)];
    x_sum += weight[static_cast<std::size_t>(i)] * x[i];
  }
  const auto codes_at = [&](float inverse, float from) {
    std::array<float, kGroup4> q;
    for (int i = 0; i < kGroup4; ++i) q[static_cast<std::size_t>(i)] = std::clamp(round_even(inverse * (x[i] - from)), 0.0f, float{kLevels4});
    return q;
  };
  const auto error_of = [&](const Affine& fit) {
    float error = 0;
    for (int i = 0; i < kGroup4; ++i) {
      const float difference = fit.scale * fit.codes[static_cast<std::size_t>(i)] - fit.minimum - x[i];
      error += weight[static_cast<std::size_t>(i)] * (difference * difference);
    }
    return error;
  };

  const float levels = kLevels4 / (high - low);
  Affine best{1 / levels, -low, codes_at(levels, low)};
  float least = error_of(best);
  for (int step = 0; step <= 20; ++step) {  // 14.0, 14.1, … 16.0 levels over the range
    const float from = -best.minimum;
    Affine fit{0, 0, codes_at((-1.0f + 0.1f * static_cast<float>(step) + kLevels4) / (high - from), from)};
    float q_sum = 0, qq_sum = 0, qx_sum = 0;
    for (int i = 0; i < kGroup4; ++i) {
      const auto at = static_cast<std::size_t>(i);
      q_sum += weight[at] * fit.codes[at];
      qq_sum += weight[at] * fit.codes[at] * fit.codes[at];
      qx_sum += weight[at] * fit.codes[at] * x[i];
    }
    const float determinant = w_sum * qq_sum - q_sum * q_sum;
    if (!(determinant > 0)) continue;
    fit.scale = (w_sum * qx_sum - x_sum * q_sum) / determinant;
    fit.minimum = -((qq_sum * x_sum - q_sum * qx_sum) / determinant);
    if (fit.minimum < 0) {
      fit.minimum = 0;
      fit.scale = qx_sum / qq_sum;
    }
    if (!(fit.scale >= 0)) continue;
    if (const float error = error_of(fit); error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

// Eight pairs of 6-bit numbers in 12 bytes: pairs 0 to 3 in the low six bits of bytes 0 … 3 (scales) and 4 … 7 (minima); of pairs 4 to 7 the low
// four bits in the nibbles of bytes 8 … 11 and the high two on top of bytes 0 … 7.
void pack_pairs(const std::array<int, kGroups4>& scales, const std::array<int, kGroups4>& minima, std::uint8_t* out) {
  for (std::size_t g = 0; g < 4; ++g) {
    out[g] = static_cast<std::uint8_t>(scales[g] | (scales[g + 4] >> 4) << 6);
    out[g + 4] = static_cast<std::uint8_t>(minima[g] | (minima[g + 4] >> 4) << 6);
    out[g + 8] = static_cast<std::uint8_t>((scales[g + 4] & 15) | (minima[g + 4] & 15) << 4);
  }
}

struct Pair {
  float scale, minimum;
};
Pair unpack_pair(const std::uint8_t* packed, int group) {
  if (group < 4) return {static_cast<float>(packed[group] & 63), static_cast<float>(packed[group + 4] & 63)};
  return {static_cast<float>((packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4), static_cast<float>(packed[group + 4] >> 4 | (packed[group] >> 6) << 4)};
}

// ---- q6_k: sixteen groups of 16, each w ≈ scale·q with q in −32 … 31

constexpr int kGroup6 = 16, kGroups6 = kSuper / kGroup6, kHalf6 = 32;

int code6(float scaled) { return static_cast<int>(std::clamp(round_even(scaled), -32.0f, 31.0f)); }

struct Symmetric {
  float scale = 0;                      // w = scale·q
  std::array<int, kGroup6> codes = {};  // q
};

// The scale of least Σ xᵢ² (scale·qᵢ − xᵢ)²; its sign puts the value of the largest magnitude on the side that has one code more. Nothing at all gives
// the lowest code, as in the reference.
Symmetric fit_symmetric(const float* x) {
  float most = 0;
  for (int i = 0; i < kGroup6; ++i)
    if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
  Symmetric fit;
  if (std::fabs(most) < kNothing) {
    fit.codes.fill(-kHalf6);
    return fit;
  }
  float best = 0;
  const auto attempt = [&](int step, bool first) {
    const float inverse = -(kHalf6 + 0.1f * static_cast<float>(step)) / most;
    std::array<int, kGroup6> codes;
    float qx = 0, qq = 0;
    for (std::size_t i = 0; i < kGroup6; ++i) {
      codes[i] = code6(inverse * x[i]);
      const auto q = static_cast<float>(codes[i]);
      qx += x[i] * x[i] * x[i] * q;
      qq += x[i] * x[i] * q * q;
    }
    if (!first && !(qq > 0 && qx * qx > best * qq)) return;  // what the error falls by is qx² / qq
    fit = {qq > 0 ? qx / qq : 0.0f, codes};
    best = fit.scale * qx;
  };
  attempt(0, true);
  for (int step = -9; step <= 9; ++step)
    if (step != 0) attempt(step, false);
  return fit;
}

}  // namespace

void quantize_q4_k_block(const float* values, std::uint8_t* block) {
  std::array<Affine, kGroups4> fits;
  float most_scale = 0, most_minimum = 0;
  for (int g = 0; g < kGroups4; ++g) {
    fits[static_cast<std::size_t>(g)] = fit_affine(values + g * kGroup4);
    most_scale = std::max(most_scale, fits[static_cast<std::size_t>(g)].scale);
    most_minimum = std::max(most_minimum, fits[static_cast<std::size_t>(g)].minimum);
  }
  const auto sixth_bit = [](float value, float most) { return most > kNothing ? std::min(63, nearest(63.0f / most * value)) : 0; };
  std::array<int, kGroups4> scales{}, minima{};
  for (std::size_t g = 0; g < kGroups4; ++g) {
    scales[g] = sixth_bit(fits[g].scale, most_scale);
    minima[g] = sixth_bit(fits[g].minimum, most_minimum);
  }
  const float d = most_scale / 63.0f, m = most_minimum / 63.0f;
  from_f32(Dtype::f16, &d, 1, block);
  from_f32(Dtype::f16, &m, 1, block + 2);
  pack_pairs(scales, minima, block + 4);

  // The codes once more, for the scales as they will be read; where those are 0, any do, and the reference leaves them.
  std::array<int, kSuper> q{};
  for (std::size_t g = 0; g < kGroups4; ++g) {
    const float scale = as_f16(d) * static_cast<float>(scales[g]), minimum = as_f16(m) * static_cast<float>(minima[g]);
    for (std::size_t i = 0; i < kGroup4 && scale == 0; ++i) q[g * kGroup4 + i] = static_cast<int>(fits[g].codes[i]);
    if (scale == 0) continue;
    for (std::size_t i = g * kGroup4; i < (g + 1) * kGroup4; ++i) q[i] = static_cast<int>(std::clamp(round_even((values[i] + minimum) / scale), 0.0f, float{kLevels4}));
  }
  for (std::size_t pair = 0; pair < kGroups4 / 2; ++pair)
    for (std::size_t i = 0; i < kGroup4; ++i)
      block[16 + pair * kGroup4 + i] = static_cast<std::uint8_t>(q[pair * 64 + i] | q[pair * 64 + kGroup4 + i] << 4);
}

void dequantize_q4_k_block(const std::uint8_t* block, float* values) {
  float d = 0, m = 0;
  to_f32(Dtype::f16, block, 1, &d);
  to_f32(Dtype::f16, block + 2, 1, &m);
  for (int g = 0; g < kGroups4; ++g) {
    const Pair pair = unpack_pair(block + 4, g);
    const float scale = d * pair.scale, minimum = m * pair.minimum;
    const std::uint8_t* codes = block + 16 + g / 2 * kGroup4;
    for (int i = 0; i < kGroup4; ++i) values[g * kGroup4 + i] = scale * static_cast<float>(g % 2 == 0 ? codes[i] & 15 : codes[i] >> 4) - minimum;
  }
}

void quantize_q6_k_block(const float* values, std::uint8_t* block) {
  std::array<Symmetric, kGroups6> fits;
  float most = 0;
  for (std::size_t g = 0; g < kGroups6; ++g) {
    fits[g] = fit_symmetric(values + g * kGroup6);
    if (std::fabs(fits[g].scale) > std::fabs(most)) most = fits[g].scale;
  }
  std::memset(block, 0, 210);
  if (std::fabs(most) < kNothing) return;
  const float inverse = -128.0f / most, d = 1.0f / inverse;
  from_f32(Dtype::f16, &d, 1, block + 208);
  std::array<int, kSuper> q{};
  for (std::size_t g = 0; g < kGroups6; ++g) {
    const int scale = std::min(127, nearest(inverse * fits[g].scale));
    block[192 + g] = static_cast<std::uint8_t>(static_cast<std::int8_t>(scale));
    const float step = as_f16(d) * static_cast<float>(scale);
    for (std::size_t i = g * kGroup6; i < (g + 1) * kGroup6; ++i)
      q[i] = kHalf6 + (step == 0 ? fits[g].codes[i - g * kGroup6] : code6(values[i] / step));
  }
  // Halves of 128 values: value i and i + 64 share a byte of low nibbles; i, i + 32, i + 64 and i + 96 one of high bit pairs.
  for (std::size_t half = 0; half < 2; ++half)
    for (std::size_t i = 0; i < 32; ++i) {
      const int* at = q.data() + half * 128 + i;
      block[half * 64 + i] = static_cast<std::uint8_t>((at[0] & 15) | (at[64] & 15) << 4);
      block[half * 64 + i + 32] = static_cast<std::uint8_t>((at[32] & 15) | (at[96] & 15) << 4);
      block[128 + half * 32 + i] = static_cast<std::uint8_t>(at[0] >> 4 | (at[32] >> 4) << 2 | (at[64] >> 4) << 4 | (at[96] >> 4) << 6);
    }
}

void dequantize_q6_k_block(const std::uint8_t* block, float* values) {
  float d = 0;
  to_f32(Dtype::f16, block + 208, 1, &d);
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 32; ++i) {
      const int low = block[half * 64 + i], low_next = block[half * 64 + i + 32], high = block[128 + half * 32 + i];
      const std::array<int, 4> q = {(low & 15) | (high & 3) << 4, (low_next & 15) | (high >> 2 & 3) << 4, low >> 4 | (high >> 4 & 3) << 4,
                                    low_next >> 4 | (high >> 6) << 4};
      for (int part = 0; part < 4; ++part) {
        const int at = half * 128 + part * 32 + i;
        const float scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + at / kGroup6]));
        values[at] = scale * static_cast<float>(q[static_cast<std::size_t>(part)] - kHalf6);
      }
    }
}

}  // namespace engine
