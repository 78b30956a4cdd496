#include "ops/rmsnorm.h"

#include "ops/op_test.h"

namespace engine {
using namespace test;

TEST("rmsnorm equals its definition with every instruction set at odd widths") {
  for (const std::int64_t width : {1, 63, 65, 128, 4097})
    for (const std::int64_t rows : {0, 1, 5}) {
      const auto x = random_values(rows * width, 1), w = random_values(width, 2), dy = random_values(rows * width, 3), before = random_values(rows * width, 4);
      const RmsNorm norm{w.data(), width, 1e-6f, 1.0f};
      std::vector<float> y0, dx0, dw0, rstd0;
      for (const Isa isa : runnable_isas()) {
        auto y = poisoned(rows * width), rstd = poisoned(rows), dx = before;
        std::vector<float> dw(static_cast<std::size_t>(width), 0.5f);
        rmsnorm_forward(exec(isa), norm, {x.data(), rows, width}, {y.data(), rows, width}, rstd.data());
        rmsnorm_backward(exec(isa), norm, {x.data(), rows, width}, rstd.data(), {dy.data(), rows, width}, {dx.data(), rows, width}, true);
        rmsnorm_backward_weight(exec(isa), norm, {x.data(), rows, width}, rstd.data(), {dy.data(), rows, width}, dw.data());
        if (isa == Isa::scalar) y0 = y, dx0 = dx, dw0 = dw, rstd0 = rstd;
        CHECK_ERROR(relative_error(y, y0), 1e-6, isa_name(isa), " width ", width);
        CHECK_ERROR(relative_error(rstd, rstd0), 1e-6, isa_name(isa), " width ", width);
        CHECK_ERROR(relative_error(dx, dx0), 2e-6, isa_name(isa), " width ", width);
        CHECK_ERROR(relative_error(dw, dw0), 2e-6, isa_name(isa), " width ", width);
      }
    }
}

TEST("the gradients of rmsnorm agree with finite differences") {
  const std::int64_t rows = 3, width = 17;
  for (const Isa isa : runnable_isas()) {
    auto x = random_values(rows * width, 1), w = random_values(width, 2);
    const auto dy = random_values(rows * width, 3);
    const auto loss = [&] {
      auto y = poisoned(rows * width);
      rmsnorm_forward(exec(isa), {w.data(), width, 1e-5f, 1.0f}, {x.data(), rows, width}, {y.data(), rows, width}, nullptr);
      return dot(y, dy);
    };
    auto y = poisoned(rows * width), rstd = poisoned(rows), dx = poisoned(rows * width);
    std::vector<float> dw(static_cast<std::size_t>(width), 0.0f);
    const RmsNorm norm{w.data(), width, 1e-5f, 1.0f};
    rmsnorm_forward(exec(isa), norm, {x.data(), rows, width}, {y.data(), rows, width}, rstd.data());
    rmsnorm_backward(exec(isa), norm, {x.data(), rows, width}, rstd.data(), {dy.data(), rows, width}, {dx.data(), rows, width});
    rmsnorm_backward_weight(exec(isa), norm, {x.data(), rows, width}, rstd.data(), {dy.data(), rows, width}, dw.data());
    CHECK_ERROR(finite_difference_error(x, dx, loss), 1e-3, isa_name(isa));
    CHECK_ERROR(finite_difference_error(w, dw, loss), 1e-3, isa_name(isa));
  }
}

TEST("a per-head norm on strided rows equals one norm per head") {
  const std::int64_t tokens = 5, heads = 3, dim = 32, stride = 128;
  const auto packed = random_values(tokens * stride, 1), w = random_values(dim, 2);
  for (const Isa isa : runnable_isas()) {
    auto strided = packed;
    auto rstd = poisoned(tokens * heads);
    const RmsNorm norm{w.data(), dim, 1e-6f};
    rmsnorm_forward(exec(isa), norm, {packed.data(), tokens, heads * dim, stride}, {strided.data(), tokens, heads * dim, stride}, rstd.data());
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        auto y = poisoned(dim);
        float one = 0;
        rmsnorm_forward(exec(isa), norm, {packed.data() + t * stride + h * dim, 1, dim}, {y.data(), 1, dim}, &one);
        CHECK(std::equal(y.begin(), y.end(), strided.begin() + t * stride + h * dim));
        CHECK_EQ(one, rstd[static_cast<std::size_t>(t * heads + h)]);
      }
      CHECK_EQ(strided[static_cast<std::size_t>(t * stride + heads * dim)], packed[static_cast<std::size_t>(t * stride + heads * dim)]);
    }
  }
}

TEST("rmsnorm refuses columns that are not whole groups") {
  std::vector<float> x(10), w(3);
  CHECK_THROWS(invalid, rmsnorm_forward(exec(Isa::scalar), {w.data(), 3, 1e-6f}, {x.data(), 1, 10}, {x.data(), 1, 10}, nullptr));
}

}  // namespace engine
