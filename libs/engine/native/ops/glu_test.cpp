#include "ops/glu.h"

#include "ops/op_test.h"

namespace engine {
using namespace test;

TEST("the gated activation equals its definition with every instruction set at odd sizes") {
  for (const Activation act : {Activation::silu, Activation::gelu_tanh})
    for (const std::int64_t n : kOddSizes) {
      auto gate = random_values(n, 1, 4.0f);
      const auto up = random_values(n, 2), dout = random_values(n, 3);
      if (n > 60) gate[0] = 0.0f, gate[1] = 90.0f, gate[2] = -90.0f, gate[3] = 1e30f, gate[4] = -1e30f, gate[5] = 1e-30f;
      std::vector<float> y0, dg0, du0;
      for (const Isa isa : runnable_isas()) {
        auto y = poisoned(n), dg = poisoned(n), du = poisoned(n);
        glu_forward(exec(isa), act, {gate.data(), 1, n}, {up.data(), 1, n}, {y.data(), 1, n});
        glu_backward(exec(isa), act, {gate.data(), 1, n}, {up.data(), 1, n}, {dout.data(), 1, n}, {dg.data(), 1, n}, {du.data(), 1, n});
        if (isa == Isa::scalar) y0 = y, dg0 = dg, du0 = du;
        for (std::int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<std::size_t>(i);
          CHECK_CLOSE(y[at], y0[at], 2e-6 * (1 + std::abs(y0[at])));
          CHECK_CLOSE(dg[at], dg0[at], 2e-6 * (1 + std::abs(dg0[at])));
          CHECK_CLOSE(du[at], du0[at], 2e-6 * (1 + std::abs(du0[at])));
        }
      }
    }
}

TEST("the gradients of the gated activation agree with finite differences") {
  const std::int64_t n = 50;
  for (const Isa isa : runnable_isas())
    for (const Activation act : {Activation::silu, Activation::gelu_tanh}) {
      auto gate = random_values(n, 1, 2.0f), up = random_values(n, 2);
      const auto dout = random_values(n, 3);
      const auto loss = [&] {
        auto y = poisoned(n);
        glu_forward(exec(isa), act, {gate.data(), 1, n}, {up.data(), 1, n}, {y.data(), 1, n});
        return dot(y, dout);
      };
      auto dg = poisoned(n), du = poisoned(n);
      glu_backward(exec(isa), act, {gate.data(), 1, n}, {up.data(), 1, n}, {dout.data(), 1, n}, {dg.data(), 1, n}, {du.data(), 1, n});
      CHECK_ERROR(finite_difference_error(gate, dg, loss), 1e-3, isa_name(isa));
      CHECK_ERROR(finite_difference_error(up, du, loss), 1e-3, isa_name(isa));
    }
}

TEST("the gated activation's backward may overwrite its inputs") {
  const std::int64_t n = 100;
  for (const Isa isa : runnable_isas()) {
    const auto gate = random_values(n, 1), up = random_values(n, 2), dout = random_values(n, 3);
    auto dg = poisoned(n), du = poisoned(n), g = gate, u = up;
    glu_backward(exec(isa), Activation::silu, {gate.data(), 1, n}, {up.data(), 1, n}, {dout.data(), 1, n}, {dg.data(), 1, n}, {du.data(), 1, n});
    glu_backward(exec(isa), Activation::silu, {g.data(), 1, n}, {u.data(), 1, n}, {dout.data(), 1, n}, {g.data(), 1, n}, {u.data(), 1, n});
    CHECK(g == dg);
    CHECK(u == du);
  }
}

}  // namespace engine
