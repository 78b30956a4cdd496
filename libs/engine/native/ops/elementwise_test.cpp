#include "ops/elementwise.h"

#include "ops/op_test.h"
#include "ops/reduce.h"

namespace engine {
using namespace test;

TEST("maps over activations have the same bits with every instruction set") {
  for (const std::int64_t n : kOddSizes) {
    const auto x = random_values(n, 1), start = random_values(n, 2);
    std::vector<float> added0, scaled0, dropped0;
    for (const Isa isa : runnable_isas()) {
      auto added = start, scaled = poisoned(n), dropped = poisoned(n);
      add_scaled(exec(isa), {x.data(), 1, n}, 0.3f, {added.data(), 1, n});
      scale(exec(isa), {x.data(), 1, n}, 0.3f, {scaled.data(), 1, n});
      dropout(exec(isa), {3407, 9}, 0.1f, {x.data(), 1, n}, {dropped.data(), 1, n});
      if (isa == Isa::scalar) added0 = added, scaled0 = scaled, dropped0 = dropped;
      CHECK(added == added0);
      CHECK(scaled == scaled0);
      CHECK(dropped == dropped0);
    }
  }
}

TEST("dropout keeps the expected share, scales what it keeps, and repeats its mask on another shape of rows") {
  const std::int64_t rows = 100, cols = 333;
  const std::vector<float> ones(static_cast<std::size_t>(rows * cols), 1.0f);
  for (const Isa isa : runnable_isas()) {
    auto y = poisoned(rows * cols), strided = poisoned(rows * (cols + 3));
    dropout(exec(isa), {1, 2}, 0.25f, {ones.data(), rows, cols}, {y.data(), rows, cols});
    dropout(exec(isa), {1, 2}, 0.25f, {ones.data(), rows, cols}, {strided.data(), rows, cols, cols + 3});
    double kept = 0;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        const float value = y[static_cast<std::size_t>(r * cols + c)];
        CHECK(value == 0.0f || value == static_cast<float>(1.0 / 0.75));
        CHECK_EQ(value, strided[static_cast<std::size_t>(r * (cols + 3) + c)]);
        kept += value != 0.0f;
      }
    CHECK_CLOSE(kept / static_cast<double>(rows * cols), 0.75, 0.01);
    dropout(exec(isa), {1, 2}, 0.0f, {ones.data(), rows, cols}, {y.data(), rows, cols});
    CHECK(y == ones);
    CHECK_THROWS(invalid, dropout(exec(isa), {1, 2}, 1.0f, {ones.data(), rows, cols}, {y.data(), rows, cols}));
  }
}

TEST("a bias is added to every row and its gradient is the sum of the rows") {
  const std::int64_t rows = 70, cols = 131;
  const auto y0 = random_values(rows * cols, 1), bias = random_values(cols, 2);
  for (const Isa isa : runnable_isas()) {
    auto y = y0;
    bias_add(exec(isa), bias.data(), {y.data(), rows, cols});
    std::vector<float> db(static_cast<std::size_t>(cols), 1.0f);
    bias_gradient(exec(isa), {y0.data(), rows, cols}, db.data());
    for (std::int64_t c = 0; c < cols; ++c) {
      float sum = 1.0f;
      for (std::int64_t r = 0; r < rows; ++r) {
        const auto at = static_cast<std::size_t>(r * cols + c);
        CHECK_EQ(y[at], y0[at] + bias[static_cast<std::size_t>(c)]);
        sum += y0[at];
      }
      CHECK_EQ(db[static_cast<std::size_t>(c)], sum);
    }
  }
}

TEST("the sum of squares is exact to fp64, independent of threads, and not finite when a value is not") {
  for (const std::int64_t n : kOddSizes) {
    auto x = random_values(n, 1, 1e-3f);
    double expected = 0;
    for (const float v : x) expected += double{v} * v;
    for (const Isa isa : runnable_isas()) {
      CHECK_CLOSE(sum_of_squares(exec(isa), x.data(), n), expected, 1e-13 * expected);
      ThreadPool one(1);
      CHECK_EQ(sum_of_squares(Exec{one, isa, Compute::f32}, x.data(), n), sum_of_squares(exec(isa), x.data(), n));
    }
    if (n == 0) continue;
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      auto broken = x;
      broken[static_cast<std::size_t>(n / 2)] = bad;
      for (const Isa isa : runnable_isas()) CHECK(!std::isfinite(sum_of_squares(exec(isa), broken.data(), n)));
    }
  }
}

TEST("argmax finds the first of the largest and ignores NaN") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const Isa isa : runnable_isas()) {
    for (const std::int64_t n : {1, 15, 16, 17, 63, 65, 4097}) {
      auto x = random_values(n, 1);
      for (const std::int64_t at : {std::int64_t{0}, n / 3, n - 1}) {
        auto y = x;
        y[static_cast<std::size_t>(at)] = 50.0f;
        if (at + 1 < n) y[static_cast<std::size_t>(n - 1)] = 50.0f;
        if (at > 0) y[0] = nan;
        std::int32_t found = -1;
        argmax_rows(exec(isa), {y.data(), 1, n}, &found);
        CHECK_EQ(found, static_cast<std::int32_t>(at));
      }
    }
    const std::vector<float> rows = {nan, nan, nan, -inf, -inf, -inf, nan, -inf, -1.0f};
    std::vector<std::int32_t> found(3, -1);
    argmax_rows(exec(isa), {rows.data(), 3, 3}, found.data());
    CHECK((found == std::vector<std::int32_t>{0, 0, 2}));
  }
}

}  // namespace engine
