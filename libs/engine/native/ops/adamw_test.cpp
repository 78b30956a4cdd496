#include "ops/adamw.h"

#include <algorithm>
#include <cstring>

#include "core/code_tables.h"
#include "ops/dynamic8.h"
#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

struct State8 {
  std::vector<std::uint8_t> m, v;
  std::vector<float> m_absmax, v_absmax;
  explicit State8(std::int64_t n)
      : m(static_cast<std::size_t>(n)), v(static_cast<std::size_t>(n)), m_absmax(static_cast<std::size_t>(dynamic_blocks(n))),
        v_absmax(static_cast<std::size_t>(dynamic_blocks(n))) {}
  bool operator==(const State8&) const = default;
};

void step8(const Exec& ex, const AdamW& adamw, std::vector<float>& p, const std::vector<float>& g, State8& s) {
  adamw_8bit(ex, adamw, p.data(), g.data(), s.m.data(), s.v.data(), s.m_absmax.data(), s.v_absmax.data(), static_cast<std::int64_t>(p.size()));
}

}  // namespace

TEST("AdamW follows its formula in fp64, with decay on either side") {
  const std::int64_t n = 65;
  for (const Isa isa : runnable_isas())
    for (const DecayOrder decay : {DecayOrder::before_update, DecayOrder::after_update}) {
      auto p = random_values(n, 1);
      std::vector<float> m(static_cast<std::size_t>(n)), v(static_cast<std::size_t>(n));
      std::vector<double> p64(p.begin(), p.end()), m64(p.size()), v64(p.size());
      AdamW adamw{.learning_rate = 1e-2f, .weight_decay = 0.1f, .grad_scale = 0.5f, .decay = decay};
      for (adamw.step = 1; adamw.step <= 20; ++adamw.step) {
        const auto g = random_values(n, static_cast<std::uint64_t>(100 + adamw.step));
        adamw_f32(exec(isa), adamw, p.data(), g.data(), m.data(), v.data(), n);
        for (std::size_t i = 0; i < p.size(); ++i) {
          const double gi = 0.5 * g[i];
          m64[i] = 0.9f * m64[i] + (1.0 - 0.9f) * gi;
          v64[i] = 0.999f * v64[i] + (1.0 - 0.999f) * gi * gi;
          const double c1 = 1.0 - std::pow(0.9f, adamw.step), c2 = 1.0 - std::pow(0.999f, adamw.step);
          if (decay == DecayOrder::before_update) p64[i] *= 1.0 - 1e-2 * 0.1;
          p64[i] -= 1e-2 * (m64[i] / c1) / (std::sqrt(v64[i] / c2) + 1e-8);
          if (decay == DecayOrder::after_update) p64[i] *= 1.0 - 1e-2 * 0.1;
        }
      }
      for (std::size_t i = 0; i < p.size(); ++i) CHECK_CLOSE(p[i], p64[i], 2e-6);
    }
}

TEST("every instruction set gives AdamW's parameters and 8-bit states the same bits over twenty steps") {
  for (const std::int64_t n : {0, 1, 63, 255, 257, 4097}) {
    std::vector<float> p0, q0;
    State8 s0(0);
    for (const Isa isa : runnable_isas()) {
      auto p = random_values(n, 1), q = p;
      std::vector<float> m(p.size()), v(p.size());
      State8 s(n);
      for (std::int64_t step = 1; step <= 20; ++step) {
        const auto g = random_values(n, static_cast<std::uint64_t>(step), 1e-2f);
        const AdamW adamw{.learning_rate = 1e-3f, .weight_decay = 0.01f, .step = step, .decay = DecayOrder::after_update};
        adamw_f32(exec(isa), adamw, p.data(), g.data(), m.data(), v.data(), n);
        step8(exec(isa), adamw, q, g, s);
      }
      if (isa == Isa::scalar) p0 = p, q0 = q, s0 = s;
      CHECK(p == p0);
      CHECK(q == q0);
      CHECK(s == s0);
    }
  }
}

TEST("8-bit AdamW stays close to fp32 AdamW") {
  const std::int64_t n = 4096;
  for (const Isa isa : runnable_isas()) {
    auto p = random_values(n, 1), q = p;
    const auto start = p;
    std::vector<float> m(p.size()), v(p.size());
    State8 s(n);
    for (std::int64_t step = 1; step <= 20; ++step) {
      const auto g = random_values(n, 5, 1e-2f);
      const AdamW adamw{.learning_rate = 1e-3f, .step = step};
      adamw_f32(exec(isa), adamw, p.data(), g.data(), m.data(), v.data(), n);
      step8(exec(isa), adamw, q, g, s);
    }
    double moved = 0, apart = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      moved += std::pow(p[i] - start[i], 2);
      apart += std::pow(p[i] - q[i], 2);
    }
    CHECK_ERROR(std::sqrt(apart / moved), 0.1, isa_name(isa));
  }
}

TEST("the first 8-bit step writes codes that decode to the moments within half a gap") {
  const std::int64_t n = 512;
  const auto g = random_values(n, 3, 1e-3f);
  for (const Isa isa : runnable_isas()) {
    auto p = random_values(n, 1);
    State8 s(n);
    step8(exec(isa), {.learning_rate = 1e-3f}, p, g, s);
    for (std::size_t i = 0; i < g.size(); ++i) {
      const float m = kDynamicSigned[s.m[i]] * s.m_absmax[i / 256];
      CHECK_CLOSE(m, 0.1f * g[i], 0.0071 * s.m_absmax[i / 256]);
      CHECK(g[i] == 0 || m == 0 || std::signbit(m) == std::signbit(g[i]));
    }
    float largest = 0;
    for (std::size_t i = 0; i < 256; ++i) largest = std::max(largest, std::abs((1.0f - 0.9f) * g[i]));
    CHECK_EQ(s.m_absmax[0], largest);
  }
}

TEST("a gradient of zeros leaves fresh parameters and states at rest") {
  for (const Isa isa : runnable_isas()) {
    auto p = random_values(300, 1);
    const auto before = p;
    State8 s(300);
    step8(exec(isa), {.learning_rate = 1e-3f}, p, std::vector<float>(300, 0.0f), s);
    CHECK(p == before);
    CHECK_EQ(s.m_absmax[0], 0.0f);
  }
}

TEST("step zero is refused") {
  float x = 0;
  CHECK_THROWS(invalid, adamw_f32(exec(Isa::scalar), {.learning_rate = 1.0f, .step = 0}, &x, &x, &x, &x, 1));
}

}  // namespace engine
