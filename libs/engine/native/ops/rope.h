// rope.h: rotary position embedding, in the half-split layout of Hugging Face.
//   For i < rotary_dim / 2 and angle a = position · frequency[i]:
//     y[i] = x[i]·cos a - x[i + rotary_dim/2]·sin a        y[i + rotary_dim/2] = x[i + rotary_dim/2]·cos a + x[i]·sin a
//   cos and sin are multiplied by the attention factor (yarn); columns beyond rotary_dim pass through.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

enum class RopeType : std::uint8_t { standard, linear, dynamic, llama3, yarn };  // "default", "linear", …

// Fields as in config.json's rope_parameters / rope_scaling; those a type does not use are ignored.
struct RopeParameters {
  RopeType type = RopeType::standard;
  std::int64_t rotary_dim = 0;           // even, ≥ 2
  double theta = 10000.0;
  double factor = 1.0;                   // all but standard
  std::int64_t original_context = 0;     // dynamic (max_position_embeddings), llama3, yarn
  double low_freq_factor = 1.0;          // llama3
  double high_freq_factor = 4.0;         // llama3
  double beta_fast = 32.0;               // yarn
  double beta_slow = 1.0;                // yarn
  double attention_factor = 0.0;         // yarn; 0: derived from factor, mscale and mscale_all_dim
  double mscale = 0.0;                   // yarn; 0: absent
  double mscale_all_dim = 0.0;           // yarn; 0: absent
  bool truncate = true;                  // yarn: round the correction range outwards to whole dimensions
};

struct RopeFrequencies {
  std::vector<float> inverse;      // [rotary_dim / 2], radians per position
  float attention_factor = 1.0f;
};

// Frequencies for a sequence of `length` tokens; only `dynamic` depends on it (beyond original_context). Computed in fp64, rounded
// once to fp32. Throws invalid for parameters out of range, naming the one.
RopeFrequencies rope_frequencies(const RopeParameters& parameters, std::int64_t length);

// cos and sin, attention factor included, of positions 0 … count-1: [count, rotary_dim / 2] each.
// The angle is the fp32 product position · frequency, as in the reference implementations; cos and sin of it are exact to fp32.
struct RopeTable {
  std::int64_t rotary_dim = 0, count = 0;
  std::vector<float> cos, sin;
};
RopeTable make_rope_table(const RopeFrequencies& frequencies, std::int64_t count);

// Rotates, in place, every group of head_dim columns of x [T, heads · head_dim]; row t is at positions[t] (< table.count, or invalid).
void rope_apply(const Exec& ex, const RopeTable& table, const std::int32_t* positions, std::int64_t head_dim, Rows x);

// The gradient: multiplies by the transpose, in place (the inverse rotation, scaled by the attention factor again).
void rope_backward(const Exec& ex, const RopeTable& table, const std::int32_t* positions, std::int64_t head_dim, Rows dx);

}  // namespace engine
