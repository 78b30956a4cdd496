// adamw.h: AdamW with fp32 or 8-bit states.   g' = g · grad_scale;  t = step, from 1
//   m = β1·m + (1-β1)·g'      v = β2·v + (1-β2)·g'²      c1 = 1 - β1^t      c2 = √(1 - β2^t)
//   p -= lr · c2/c1 · m / (√v + c2·ε)        decoupled decay: p *= 1 - lr·λ, before the update (torch) or after it (bitsandbytes)
//   Non-finite gradients are the caller's to find (sum_of_squares) and skip.
#pragma once

#include <cstdint>

#include "core/exec.h"

namespace engine {

enum class DecayOrder : std::uint8_t { before_update, after_update };

struct AdamW {
  float learning_rate;
  float beta1 = 0.9f, beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;
  std::int64_t step = 1;      // of this update; ≥ 1
  float grad_scale = 1.0f;    // gradient clipping
  DecayOrder decay = DecayOrder::before_update;
};

// Tensors with fewer values than this keep fp32 states under the 8-bit optimizer (bitsandbytes' min_8bit_size).
inline constexpr std::int64_t kMin8BitSize = 4096;

// p, g, m, v fp32 [n]; p, m, v updated.
void adamw_f32(const Exec& ex, const AdamW& adamw, float* p, const float* g, float* m, float* v, std::int64_t n);

// States as codes in blocks of 256 (ops/dynamic8.h): m by the signed map, v by the unsigned one; a block's scale is its largest |state|.
//   codes [n], absmax [dynamic_blocks(n)]. Fresh states are all zero bytes and zero scales.
// The code of m keeps the sign of m: a nearest entry of the other sign moves one step.
void adamw_8bit(const Exec& ex, const AdamW& adamw, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax,
                float* v_absmax, std::int64_t n);

}  // namespace engine
