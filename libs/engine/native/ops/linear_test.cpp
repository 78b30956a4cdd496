#include "ops/linear.h"

#include "ops/gemm.h"
#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

struct Size {
  std::int64_t tokens, outputs, inputs;
};

// One element up to several panels, passes and parts; 170 rows are enough for parts that own their rows.
constexpr Size kSizes[] = {{1, 1, 1},  {1, 65, 64}, {3, 63, 65},   {4, 130, 192}, {5, 96, 64},  {17, 33, 63},   {63, 65, 257}, {0, 8, 64},
                           {2, 0, 64}, {7, 40, 1},  {1, 7, 4097}, {33, 70, 513}, {5, 1030, 64}, {170, 40, 64}, {65, 130, 320}};

// What rounding can do: fp32 sums of K terms, in another order than the definition's fp64.
double tolerance(Compute) { return 2e-6; }

}  // namespace

TEST("linear equals its definition for every weight type, instruction set and precision at odd shapes") {
  for (const WeightKind kind : kWeightKinds)
    for (const Size s : kSizes) {
      const OwnedWeight w = make_weight(kind, s.outputs, s.inputs, 1);
      const auto x = random_values(s.tokens * s.inputs, 2), bias = random_values(s.outputs, 3), before = random_values(s.tokens * s.outputs, 4);
      for (const Compute compute : {Compute::f32, Compute::bf16})
        for (const bool accumulate : {false, true}) {
          std::vector<float> expected;
          for (const Isa isa : runnable_isas()) {
            auto y = accumulate ? before : poisoned(s.tokens * s.outputs);
            linear(exec(isa, compute), {x.data(), s.tokens, s.inputs}, w.view, accumulate ? nullptr : bias.data(), {y.data(), s.tokens, s.outputs}, accumulate);
            if (isa == Isa::scalar) expected = y;
            CHECK_ERROR(relative_error(y, expected), tolerance(compute), describe(isa, compute), " weight ", static_cast<int>(kind), " shape ", s.tokens,
                        "x", s.outputs, "x", s.inputs);
          }
        }
    }
}

TEST("the input gradient of linear equals its definition for every weight type at odd shapes") {
  for (const WeightKind kind : kWeightKinds)
    for (const Size s : kSizes) {
      const OwnedWeight w = make_weight(kind, s.outputs, s.inputs, 1);
      const auto dy = random_values(s.tokens * s.outputs, 2), before = random_values(s.tokens * s.inputs, 4);
      for (const Compute compute : {Compute::f32, Compute::bf16})
        for (const bool accumulate : {false, true}) {
          std::vector<float> expected;
          for (const Isa isa : runnable_isas()) {
            auto dx = accumulate ? before : poisoned(s.tokens * s.inputs);
            linear_backward_input(exec(isa, compute), {dy.data(), s.tokens, s.outputs}, w.view, {dx.data(), s.tokens, s.inputs}, accumulate);
            if (isa == Isa::scalar) expected = dx;
            CHECK_ERROR(relative_error(dx, expected), tolerance(compute), describe(isa, compute), " weight ", static_cast<int>(kind), " shape ",
                        s.tokens, "x", s.outputs, "x", s.inputs);
          }
        }
    }
}

TEST("the three small products equal their definition at odd shapes, with strides and alpha") {
  for (const Size s : kSizes) {
    const std::int64_t m = s.tokens, n = s.outputs, k = s.inputs, pad = 3;
    const auto a = random_values(std::max(k * (m + pad), m * (k + pad)), 1), b = random_values(std::max(k * (n + pad), n * (k + pad)), 2);
    const auto before = random_values(m * (n + pad), 4);
    for (const Compute compute : {Compute::f32, Compute::bf16})
      for (const bool accumulate : {false, true})
        for (int form = 0; form < 3; ++form) {
          std::vector<float> expected;
          for (const Isa isa : runnable_isas()) {
            auto c = before;
            const Rows out{c.data(), m, n, n + pad};
            const Exec ex = exec(isa, compute);
            if (form == 0) gemm_tn(ex, {a.data(), k, m, m + pad}, {b.data(), k, n, n + pad}, out, 0.7f, accumulate);
            if (form == 1) gemm_nt(ex, {a.data(), m, k, k + pad}, {b.data(), n, k, k + pad}, out, 0.7f, accumulate);
            if (form == 2) gemm_nn(ex, {a.data(), m, k, k + pad}, {b.data(), k, n, n + pad}, out, 0.7f, accumulate);
            if (isa == Isa::scalar) expected = c;
            CHECK_ERROR(relative_error(c, expected), tolerance(compute), describe(isa, compute), " form ", form, " shape ", m, "x", n, "x", k);
            for (std::int64_t r = 0; r < m; ++r)  // the gap between rows belongs to someone else
              for (std::int64_t i = n; i < n + pad; ++i)
                CHECK_EQ(c[static_cast<std::size_t>(r * (n + pad) + i)], before[static_cast<std::size_t>(r * (n + pad) + i)]);
          }
        }
  }
}

TEST("a low-rank term equals the product of its factors added afterwards") {
  for (const Size s : kSizes)
    for (const std::int64_t rank : {1, 16, 33}) {
      const OwnedWeight w = make_weight(WeightKind::nf4, s.outputs, s.inputs, 1);
      const auto x = random_values(s.tokens * s.inputs, 2), dy = random_values(s.tokens * s.outputs, 3), h = random_values(s.tokens * rank, 4);
      const auto b = random_values(s.outputs * rank, 5), a = random_values(rank * s.inputs, 6);
      const LowRank forward{{h.data(), s.tokens, rank}, {b.data(), s.outputs, rank}, 0.5f}, backward{{h.data(), s.tokens, rank}, {a.data(), rank, s.inputs}, 0.5f};
      for (const Compute compute : {Compute::f32, Compute::bf16}) {
        std::vector<float> y0, dx0;
        for (const Isa isa : runnable_isas()) {
          const Exec ex = exec(isa, compute);
          auto y = poisoned(s.tokens * s.outputs), dx = poisoned(s.tokens * s.inputs);
          linear(ex, {x.data(), s.tokens, s.inputs}, w.view, nullptr, {y.data(), s.tokens, s.outputs}, false, &forward);
          linear_backward_input(ex, {dy.data(), s.tokens, s.outputs}, w.view, {dx.data(), s.tokens, s.inputs}, false, &backward);
          if (isa == Isa::scalar) {
            y0 = poisoned(s.tokens * s.outputs), dx0 = poisoned(s.tokens * s.inputs);
            linear(ex, {x.data(), s.tokens, s.inputs}, w.view, nullptr, {y0.data(), s.tokens, s.outputs});
            gemm_nt(ex, forward.left, forward.right, {y0.data(), s.tokens, s.outputs}, 0.5f, true);
            linear_backward_input(ex, {dy.data(), s.tokens, s.outputs}, w.view, {dx0.data(), s.tokens, s.inputs});
            gemm_nn(ex, backward.left, backward.right, {dx0.data(), s.tokens, s.inputs}, 0.5f, true);
          }
          CHECK_ERROR(relative_error(y, y0), tolerance(compute), describe(isa, compute), " shape ", s.tokens, "x", s.outputs, "x", s.inputs, " rank ", rank);
          CHECK_ERROR(relative_error(dx, dx0), tolerance(compute), describe(isa, compute), " shape ", s.tokens, "x", s.outputs, "x", s.inputs, " rank ", rank);
        }
      }
    }
}

TEST("an empty sum gives zero and forgets what was there") {
  for (const Isa isa : runnable_isas()) {
    auto c = poisoned(6);
    gemm_tn(exec(isa), {nullptr, 0, 2}, {nullptr, 0, 3}, {c.data(), 2, 3});
    for (const float x : c) CHECK_EQ(x, 0.0f);
  }
}

TEST("linear's gradients agree with finite differences") {
  const std::int64_t t = 5, n = 7, k = 64;
  for (const Isa isa : runnable_isas()) {
    OwnedWeight w = make_weight(WeightKind::f32, n, k, 1);
    auto x = random_values(t * k, 2);
    const auto dy = random_values(t * n, 3);
    std::vector<float> weights(static_cast<std::size_t>(n * k));
    decode_weight(isa, w.view, 0, n * k, weights.data());
    w.view.data = weights.data();
    const auto loss = [&] {
      auto y = poisoned(t * n);
      linear(exec(isa), {x.data(), t, k}, w.view, nullptr, {y.data(), t, n});
      return dot(y, dy);
    };
    auto dx = poisoned(t * k), dw = poisoned(n * k);
    linear_backward_input(exec(isa), {dy.data(), t, n}, w.view, {dx.data(), t, k});
    gemm_tn(exec(isa), {dy.data(), t, n}, {x.data(), t, k}, {dw.data(), n, k});
    CHECK_ERROR(finite_difference_error(x, dx, loss), 1e-3, isa_name(isa));
    CHECK_ERROR(finite_difference_error(weights, dw, loss), 1e-3, isa_name(isa));
  }
}

TEST("results do not depend on the number of threads, bit for bit") {
  const std::int64_t t = 37, n = 300, k = 640;
  const OwnedWeight w = make_weight(WeightKind::nf4_double, n, k, 1);
  const auto x = random_values(t * k, 2), dy = random_values(t * n, 3);
  for (const Isa isa : runnable_isas())
    for (const Compute compute : {Compute::f32, Compute::bf16}) {
      std::vector<float> y1, dx1, dw1;
      for (const int threads : {1, 2, 5}) {
        ThreadPool threads_pool(threads);
        const Exec ex{threads_pool, isa, compute};
        auto y = poisoned(t * n), dx = poisoned(t * k), dw = poisoned(n * k);
        linear(ex, {x.data(), t, k}, w.view, nullptr, {y.data(), t, n});
        linear_backward_input(ex, {dy.data(), t, n}, w.view, {dx.data(), t, k});
        gemm_tn(ex, {dy.data(), t, n}, {x.data(), t, k}, {dw.data(), n, k});
        if (threads == 1) y1 = y, dx1 = dx, dw1 = dw;
        CHECK(y == y1);
        CHECK(dx == dx1);
        CHECK(dw == dw1);
      }
    }
}

TEST("a row of linear has the same bits whatever the other rows, above and below the vector limit") {
  const std::int64_t n = 130, k = 448;
  for (const WeightKind kind : kWeightKinds) {
    const OwnedWeight w = make_weight(kind, n, k, 1);
    const auto x = random_values(64 * k, 2);
    for (const Isa isa : runnable_isas())
      for (const Compute compute : {Compute::f32, Compute::bf16}) {
        const auto first_row = [&](std::int64_t rows) {
          auto y = poisoned(rows * n);
          linear(exec(isa, compute), {x.data(), rows, k}, w.view, nullptr, {y.data(), rows, n});
          y.resize(static_cast<std::size_t>(n));
          return y;
        };
        for (const std::int64_t rows : {2, 3, 4}) CHECK(first_row(rows) == first_row(1));
        for (const std::int64_t rows : {6, 17, 64}) CHECK(first_row(rows) == first_row(5));
      }
  }
}

TEST("in the order for any rows, a row of linear has one sequence of bits, whatever the rows beside it") {
  // Depths of a part of a step, of whole steps, of one sweep and of several; outputs that end inside groups, panels and parts.
  struct Outputs {
    std::int64_t n, k;
  };
  constexpr std::int64_t kRows = 150;
  for (const Outputs s : {Outputs{1, 1}, Outputs{17, 33}, Outputs{70, 64}, Outputs{45, 257}, Outputs{300, 448}, Outputs{37, 2048}, Outputs{21, 2112},
                          Outputs{19, 4257}})
    for (const WeightKind kind : kWeightKinds) {
      const OwnedWeight w = make_weight(kind, s.n, s.k, 1);
      const std::int64_t rank = 5;
      const auto x = random_values(kRows * s.k, 2), bias = random_values(s.n, 3), before = random_values(kRows * s.n, 4);
      const auto low = random_values(kRows * rank, 5), factor = random_values(s.n * rank, 6);
      for (const Isa isa : runnable_isas())
        for (const Compute compute : {Compute::f32, Compute::bf16})
          for (const bool accumulate : {false, true}) {
            const Exec ex{pool(), isa, compute, SumOrder::same_for_any_rows};
            // Row `at` computed among `rows` rows that begin with it.
            const auto row_among = [&](std::int64_t at, std::int64_t rows) {
              std::vector<float> y(before.begin() + at * s.n, before.begin() + (at + rows) * s.n);
              const LowRank term{{low.data() + at * rank, rows, rank}, {factor.data(), s.n, rank}, 0.5f};
              linear(ex, {x.data() + at * s.k, rows, s.k}, w.view, bias.data(), {y.data(), rows, s.n}, accumulate, &term);
              y.resize(static_cast<std::size_t>(s.n));
              return y;
            };
            const auto alone = row_among(2, 1);
            for (const std::int64_t rows : {2, 4, 5, 16, 40, 148})
              if ((isa != Isa::scalar || rows <= 16) && row_among(2, rows) != alone)  // one value at a time: there is no tile of rows to end inside of
                report_failure(__FILE__, __LINE__, text(describe(isa, compute), " weight ", static_cast<int>(kind), " ", s.n, "x", s.k, ": a row among ", rows,
                                                        " differs from the row alone"));
          }
    }
}

TEST("in the order for any rows, linear equals its definition and does not depend on the number of threads") {
  for (const WeightKind kind : kWeightKinds)
    for (const Size s : kSizes) {
      const OwnedWeight w = make_weight(kind, s.outputs, s.inputs, 1);
      const auto x = random_values(s.tokens * s.inputs, 2), bias = random_values(s.outputs, 3);
      for (const Compute compute : {Compute::f32, Compute::bf16}) {
        std::vector<float> expected;
        for (const Isa isa : runnable_isas()) {
          std::vector<float> one_thread;
          for (const int threads : {1, 3}) {
            ThreadPool threads_pool(threads);
            auto y = poisoned(s.tokens * s.outputs);
            linear({threads_pool, isa, compute, SumOrder::same_for_any_rows}, {x.data(), s.tokens, s.inputs}, w.view, bias.data(), {y.data(), s.tokens, s.outputs});
            if (isa == Isa::scalar) expected = y;
            if (threads == 1) one_thread = y;
            CHECK(y == one_thread);
            CHECK_ERROR(relative_error(y, expected), tolerance(compute), describe(isa, compute), " weight ", static_cast<int>(kind), " shape ", s.tokens, "x",
                        s.outputs, "x", s.inputs);
          }
        }
      }
    }
}

TEST("NF4 in bf16 precision is worth bf16(code · absmax), exactly") {
  const std::int64_t n = 3, k = 128;
  const OwnedWeight w = make_weight(WeightKind::nf4_double, n, k, 1);
  for (const Isa isa : runnable_isas())
    for (const std::int64_t rows : {k, std::int64_t{1}}) {  // one-hot rows read single weights, through both kernels
      std::vector<float> x(static_cast<std::size_t>(rows * k), 0.0f), values(static_cast<std::size_t>(n * k));
      for (std::int64_t r = 0; r < rows; ++r) x[static_cast<std::size_t>(r * k + r)] = 1.0f;
      auto y = poisoned(rows * n);
      linear(exec(isa, Compute::bf16), {x.data(), rows, k}, w.view, nullptr, {y.data(), rows, n});
      decode_weight(Isa::scalar, w.view, 0, n * k, values.data());
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < n; ++c)
          CHECK_EQ(y[static_cast<std::size_t>(r * n + c)], round_to_bf16(values[static_cast<std::size_t>(c * k + r)]));
    }
}

TEST("linear refuses shapes that do not fit and weights that are not there") {
  const OwnedWeight w = make_weight(WeightKind::f32, 4, 8, 1);
  std::vector<float> x(64), y(64);
  CHECK_THROWS(invalid, linear(exec(Isa::scalar), {x.data(), 2, 7}, w.view, nullptr, {y.data(), 2, 4}));
  CHECK_THROWS(invalid, linear(exec(Isa::scalar), {x.data(), 2, 8}, w.view, nullptr, {y.data(), 3, 4}));
  CHECK_THROWS(invalid, linear(exec(Isa::scalar), {x.data(), 2, 8}, Matrix{Dtype::nf4, 4, 8, x.data(), {}}, nullptr, {y.data(), 2, 4}));
  CHECK_THROWS(unsupported, linear(exec(Isa::scalar), {x.data(), 2, 8}, Matrix{Dtype::i8, 4, 8, x.data(), {}}, nullptr, {y.data(), 2, 4}));
}

}  // namespace engine
