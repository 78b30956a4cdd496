#include "ops/adamw.h"

#include <cmath>

#include "core/code_tables.h"
#include "core/error.h"
#include "ops/adamw_rows.h"
#include "ops/dispatch.h"
#include "ops/dynamic8.h"

namespace engine {
namespace {

struct Moments {
  float m, v;
};

Moments next_moments(const AdamWConstants& c, float g, float m, float v) {
  const float scaled = g * c.grad_scale;
  return {m * c.beta1 + c.one_minus_beta1 * scaled, v * c.beta2 + c.one_minus_beta2 * scaled * scaled};
}

float updated(const AdamWConstants& c, float p, Moments s) {
  if (c.decay_before) p *= c.decay;
  p -= c.step_size * (s.m / (std::sqrt(s.v) + c.epsilon));
  if (!c.decay_before) p *= c.decay;
  return p;
}

void f32(const AdamWConstants& c, float* p, const float* g, float* m, float* v, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Moments s = next_moments(c, g[i], m[i], v[i]);
    m[i] = s.m;
    v[i] = s.v;
    p[i] = updated(c, p[i], s);
  }
}

// The nearest entry, but never one of the other sign: a first moment must not start to pull the other way by rounding.
std::uint8_t signed_code(float moment, float x) {
  const std::uint8_t code = nearest_code(kDynamicSigned, x);
  if (std::signbit(kDynamicSigned[code]) == std::signbit(moment)) return code;
  return static_cast<std::uint8_t>(moment > 0 ? code + 1 : code - 1);
}

void block8(const AdamWConstants& c, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax, float* v_absmax,
            std::int64_t n) {
  Moments states[kDynamicBlock];
  float m_largest = 0, v_largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    states[i] = next_moments(c, g[i], kDynamicSigned[m_codes[i]] * *m_absmax, kDynamicUnsigned[v_codes[i]] * *v_absmax);
    m_largest = std::fmax(m_largest, std::fabs(states[i].m));
    v_largest = std::fmax(v_largest, std::fabs(states[i].v));
  }
  for (std::int64_t i = 0; i < n; ++i) {
    p[i] = updated(c, p[i], states[i]);
    m_codes[i] = signed_code(states[i].m, m_largest > 0 ? states[i].m / m_largest : 0.0f);
    v_codes[i] = nearest_code(kDynamicUnsigned, v_largest > 0 ? states[i].v / v_largest : 0.0f);
  }
  *m_absmax = m_largest;
  *v_absmax = v_largest;
}

}  // namespace

AdamWConstants adamw_constants(const AdamW& adamw) {
  require(adamw.step >= 1, "adamw step is ", adamw.step, "; the first is 1");
  const double c1 = 1.0 - std::pow(double{adamw.beta1}, static_cast<double>(adamw.step));
  const double c2 = std::sqrt(1.0 - std::pow(double{adamw.beta2}, static_cast<double>(adamw.step)));
  return {adamw.beta1,
          adamw.beta2,
          1.0f - adamw.beta1,
          1.0f - adamw.beta2,
          static_cast<float>(double{adamw.learning_rate} * c2 / c1),
          static_cast<float>(c2 * double{adamw.epsilon}),
          static_cast<float>(1.0 - double{adamw.learning_rate} * double{adamw.weight_decay}),
          adamw.decay == DecayOrder::before_update,
          adamw.grad_scale};
}

const AdamWRows adamw_rows_scalar = {f32, block8};

void adamw_f32(const Exec& ex, const AdamW& adamw, float* p, const float* g, float* m, float* v, std::int64_t n) {
  const AdamWConstants c = adamw_constants(adamw);
  const AdamWRows& rows = ENGINE_ROWS(ex.isa, adamw_rows);
  ex.pool.for_ranges(n, 16384, [&](std::int64_t first, std::int64_t last) { rows.f32(c, p + first, g + first, m + first, v + first, last - first); });
}

void adamw_8bit(const Exec& ex, const AdamW& adamw, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes, float* m_absmax,
                float* v_absmax, std::int64_t n) {
  const AdamWConstants c = adamw_constants(adamw);
  const AdamWRows& rows = ENGINE_ROWS(ex.isa, adamw_rows);
  ex.pool.for_ranges(dynamic_blocks(n), 16, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t at = block * kDynamicBlock;
      rows.block8(c, p + at, g + at, m_codes + at, v_codes + at, m_absmax + block, v_absmax + block, n - at < kDynamicBlock ? n - at : kDynamicBlock);
    }
  });
}

}  // namespace engine
