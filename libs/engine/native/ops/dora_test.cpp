#include "ops/dora.h"

#include <cmath>

#include "ops/op_test.h"

using namespace engine;
using namespace engine::test;

namespace {

constexpr std::int64_t kRank = 3;
constexpr float kScale = 0.7f;

struct Case {
  std::int64_t n, k;
  std::vector<float> w, a, b;
  Case(std::int64_t outputs, std::int64_t inputs)
      : n(outputs), k(inputs), w(random_values(n * k, 1)), a(random_values(kRank * k, 2)), b(random_values(n * kRank, 3)) {}
  Matrix matrix() const { return {Dtype::f32, n, k, w.data(), {}}; }
  std::vector<double> norms() const {
    std::vector<double> result;
    for (std::int64_t row = 0; row < n; ++row) {
      double sum = 0;
      for (std::int64_t col = 0; col < k; ++col) {
        double v = w[static_cast<std::size_t>(row * k + col)];
        for (std::int64_t r = 0; r < kRank; ++r)
          v += double{kScale} * b[static_cast<std::size_t>(row * kRank + r)] * a[static_cast<std::size_t>(r * k + col)];
        sum += v * v;
      }
      result.push_back(std::sqrt(sum));
    }
    return result;
  }
};

}  // namespace

TEST("the norms of decomposed rows equal their definition, for every instruction set and for weights larger than a chunk") {
  for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {65, 63}, {700, 4097}}) {
    const Case c(n, k);
    const std::vector<double> expected = c.norms();
    for (const Isa isa : runnable_isas()) {
      std::vector<float> inverse = poisoned(n), scratch = poisoned(dora_chunk_rows(c.matrix()) * k);
      dora_inverse_norms(exec(isa, Compute::bf16), c.matrix(), ConstRows(c.a.data(), kRank, k), ConstRows(c.b.data(), n, kRank), kScale,
                         Rows(scratch.data(), dora_chunk_rows(c.matrix()), k), inverse.data());
      for (std::size_t i = 0; i < expected.size(); ++i) CHECK_CLOSE(inverse[i] * expected[i], 1.0, 1e-6);
    }
  }
}

TEST("a row without a direction keeps the output zero") {
  const std::vector<float> w(8, 0.0f), a(4, 1.0f), b(2, 0.0f), magnitude(2, 5.0f);
  std::vector<float> inverse = poisoned(2), scratch = poisoned(8);
  dora_inverse_norms(exec(Isa::scalar), {Dtype::f32, 2, 4, w.data(), {}}, ConstRows(a.data(), 1, 4), ConstRows(b.data(), 2, 1), 1.0f, Rows(scratch.data(), 2, 4),
                     inverse.data());
  CHECK_EQ(inverse[0], 0.0f);
  const std::vector<float> x(2, 3.0f);
  std::vector<float> y = poisoned(2);
  dora_scale(exec(Isa::scalar), ConstRows(x.data(), 1, 2), {magnitude.data(), inverse.data()}, nullptr, Rows(y.data(), 1, 2));
  CHECK_EQ(y[1], 0.0f);
}

TEST("scaling columns adds the bias once and accumulates onto what was there") {
  const std::int64_t rows = 3, cols = 65;
  const std::vector<float> x = random_values(rows * cols, 4), m = random_values(cols, 5), inverse = random_values(cols, 6), bias = random_values(cols, 7),
                           before = random_values(rows * cols, 8);
  std::vector<float> y = before, plain = poisoned(rows * cols);
  const ConstRows in(x.data(), rows, cols);
  dora_scale(exec(Isa::scalar), in, {m.data(), inverse.data()}, bias.data(), Rows(y.data(), rows, cols), true);
  dora_scale(exec(Isa::scalar), in, {}, nullptr, Rows(plain.data(), rows, cols));
  CHECK(plain == x);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t n = i % static_cast<std::size_t>(cols);
    CHECK_CLOSE(y[i], double{before[i]} + double{m[n]} * inverse[n] * x[i] + bias[n], 1e-5);
  }
}

TEST("the gradient of the magnitudes agrees with finite differences and adds to what was there") {
  for (const std::int64_t cols : {std::int64_t{1}, std::int64_t{65}, std::int64_t{200}}) {
    const std::int64_t rows = 7;
    const std::vector<float> u = random_values(rows * cols, 9), dy = random_values(rows * cols, 10), inverse = random_values(cols, 11);
    std::vector<float> m = random_values(cols, 12), gradient(static_cast<std::size_t>(cols), 0.0f);
    dora_magnitude_backward(exec(Isa::scalar), ConstRows(dy.data(), rows, cols), ConstRows(u.data(), rows, cols), inverse.data(), gradient.data());
    const auto loss = [&] {
      std::vector<float> y = poisoned(rows * cols);
      dora_scale(exec(Isa::scalar), ConstRows(u.data(), rows, cols), {m.data(), inverse.data()}, nullptr, Rows(y.data(), rows, cols));
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += double{y[i]} * dy[i];
      return sum;
    };
    CHECK(finite_difference_error(m, gradient, loss) <= 1e-3);
    const std::vector<float> once = gradient;
    dora_magnitude_backward(exec(Isa::scalar), ConstRows(dy.data(), rows, cols), ConstRows(u.data(), rows, cols), inverse.data(), gradient.data());
    for (std::size_t i = 0; i < once.size(); ++i) CHECK_EQ(gradient[i], 2 * once[i]);
  }
}
