#include "ops/glu.h"

#include <cmath>

#include "core/error.h"
#include "ops/dispatch.h"
#include "ops/glu_rows.h"

namespace engine {
namespace {

constexpr float kSqrt2OverPi = 0.7978845608028654f;
constexpr float kGeluCubic = 0.044715f;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

struct Activated {
  float value, derivative;
};

Activated activate(Activation act, float x) {
  if (act == Activation::silu) {
    const float s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
  const float c = std::fmin(std::fmax(x, -10.0f), 10.0f);  // beyond, tanh is ±1 in fp32 and the cube might overflow
  const float t = std::tanh(kSqrt2OverPi * (c + kGeluCubic * c * c * c));
  const float inner = kSqrt2OverPi * (1.0f + 3.0f * kGeluCubic * c * c);
  return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * c * (1.0f - t * t) * inner};
}

void forward(Activation act, const float* gate, const float* up, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = activate(act, gate[i]).value * up[i];
}

void backward(Activation act, const float* gate, const float* up, const float* dout, std::int64_t n, float* dgate, float* dup) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Activated a = activate(act, gate[i]);
    const float d = dout[i], u = up[i];
    dgate[i] = d * u * a.derivative;
    dup[i] = d * a.value;
  }
}

constexpr std::int64_t kGrain = 8192;

void require_same(ConstRows a, ConstRows b) {
  require(a.rows == b.rows && a.cols == b.cols, "glu: shapes ", a.rows, "x", a.cols, " and ", b.rows, "x", b.cols, " differ");
}

}  // namespace

const GluRows glu_rows_scalar = {forward, backward};

void glu_forward(const Exec& ex, Activation act, ConstRows gate, ConstRows up, Rows out) {
  require_same(gate, up);
  require_same(gate, out);
  const GluRows& rows = ENGINE_ROWS(ex.isa, glu_rows);
  ex.pool.for_ranges(gate.rows, kGrain / (gate.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) rows.forward(act, gate.row(r), up.row(r), gate.cols, out.row(r));
  });
}

void glu_backward(const Exec& ex, Activation act, ConstRows gate, ConstRows up, ConstRows dout, Rows dgate, Rows dup) {
  require_same(gate, up);
  require_same(gate, dout);
  require_same(gate, dgate);
  require_same(gate, dup);
  const GluRows& rows = ENGINE_ROWS(ex.isa, glu_rows);
  ex.pool.for_ranges(gate.rows, kGrain / (gate.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) rows.backward(act, gate.row(r), up.row(r), dout.row(r), gate.cols, dgate.row(r), dup.row(r));
  });
}

}  // namespace engine
