#include "ops/attention.h"

#include <numeric>

#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

struct Case {
  AttentionShape shape;
  std::vector<std::int64_t> lengths;
};

std::vector<Case> cases() {
  return {{{2, 1, 16, 0.25f}, {1}},
          {{4, 2, 32, 0.18f}, {7, 33, 24}},
          {{3, 3, 64, 0.125f}, {63, 0, 65}},
          {{2, 2, 80, 0.11f}, {5, 130}},
          {{6, 2, 128, 0.088f}, {129, 1}},
          {{2, 1, 256, 0.0625f}, {40}},
          {{4, 2, 32, 0.18f, 16}, {7, 100, 24}},
          {{2, 1, 24, 0.2f, 1}, {65}},
          {{4, 1, 64, 0.125f, 0, 5.0f}, {70, 3}},
          {{4, 4, 20, 0.22f, 70, 2.0f}, {200}},
          {{2, 1, 8, 0.3f}, {}}};
}

struct Problem {
  AttentionShape shape;
  std::vector<std::int64_t> offsets;
  std::int64_t tokens = 0, q_cols = 0, kv_cols = 0;
  std::vector<float> q, k, v, dout;

  explicit Problem(const Case& c, float width = 1.0f) : shape(c.shape) {
    offsets.push_back(0);
    for (const std::int64_t length : c.lengths) offsets.push_back(offsets.back() + length);
    tokens = offsets.back();
    q_cols = shape.heads * shape.head_dim;
    kv_cols = shape.kv_heads * shape.head_dim;
    q = random_values(tokens * q_cols, 1, width);
    k = random_values(tokens * kv_cols, 2, width);
    v = random_values(tokens * kv_cols, 3);
    dout = random_values(tokens * q_cols, 4);
  }
};

struct Result {
  std::vector<float> out, lse, dq, dk, dv;
};

Result solve(const Exec& ex, const Problem& p) {
  Result r{poisoned(p.tokens * p.q_cols), poisoned(p.tokens * p.shape.heads), poisoned(p.tokens * p.q_cols), poisoned(p.tokens * p.kv_cols),
           poisoned(p.tokens * p.kv_cols)};
  const ConstRows q{p.q.data(), p.tokens, p.q_cols}, k{p.k.data(), p.tokens, p.kv_cols}, v{p.v.data(), p.tokens, p.kv_cols};
  attention_forward(ex, p.shape, q, k, v, p.offsets, {r.out.data(), p.tokens, p.q_cols}, r.lse.data());
  attention_backward(ex, p.shape, q, k, v, p.offsets, ConstRows{r.out.data(), p.tokens, p.q_cols}, r.lse.data(), {p.dout.data(), p.tokens, p.q_cols},
                     {r.dq.data(), p.tokens, p.q_cols}, {r.dk.data(), p.tokens, p.kv_cols}, {r.dv.data(), p.tokens, p.kv_cols});
  return r;
}

}  // namespace

TEST("attention and its gradients equal the definition with every instruction set and precision") {
  int number = 0;
  for (const Case& c : cases()) {
    const Problem p(c);
    for (const Compute compute : {Compute::f32, Compute::bf16}) {
      const Result expected = solve(exec(Isa::scalar, compute), p);
      // In bf16 the tiled kernel rounds exp(s - running maximum), the definition exp(s - maximum).
      const double tolerance = compute == Compute::f32 ? 3e-6 : 1e-2;
      for (const Isa isa : runnable_isas()) {
        const Result r = solve(exec(isa, compute), p);
        CHECK_ERROR(relative_error(r.out, expected.out), tolerance, describe(isa, compute), " case ", number);
        CHECK_ERROR(relative_error(r.lse, expected.lse), 3e-6, describe(isa, compute), " case ", number);
        CHECK_ERROR(relative_error(r.dq, expected.dq), 2 * tolerance, describe(isa, compute), " case ", number);
        CHECK_ERROR(relative_error(r.dk, expected.dk), 2 * tolerance, describe(isa, compute), " case ", number);
        CHECK_ERROR(relative_error(r.dv, expected.dv), 2 * tolerance, describe(isa, compute), " case ", number);
      }
    }
    ++number;
  }
}

TEST("the gradients of attention agree with finite differences, with window and softcap") {
  for (const Isa isa : runnable_isas())
    for (const AttentionShape shape : {AttentionShape{4, 2, 8, 0.35f}, AttentionShape{2, 1, 8, 0.35f, 4}, AttentionShape{2, 2, 8, 0.35f, 0, 1.5f}}) {
      Problem p(Case{shape, {5, 9}});
      const Result r = solve(exec(isa), p);
      const auto loss = [&] { return dot(solve(exec(isa), p).out, p.dout); };
      CHECK_ERROR(finite_difference_error(p.q, r.dq, loss), 1e-3, isa_name(isa));
      CHECK_ERROR(finite_difference_error(p.k, r.dk, loss), 1e-3, isa_name(isa));
      CHECK_ERROR(finite_difference_error(p.v, r.dv, loss), 1e-3, isa_name(isa));
    }
}

TEST("a packed sequence has the same bits as alone") {
  const AttentionShape shape{4, 2, 32, 0.18f};
  const Problem packed(Case{shape, {7, 90, 24}});
  for (const Isa isa : runnable_isas()) {
    const Result all = solve(exec(isa), packed);
    Problem alone(Case{shape, {90}});
    const auto cut = [&](const std::vector<float>& from, std::int64_t cols) {
      return std::vector<float>(from.begin() + 7 * cols, from.begin() + 97 * cols);
    };
    alone.q = cut(packed.q, packed.q_cols);
    alone.k = cut(packed.k, packed.kv_cols);
    alone.v = cut(packed.v, packed.kv_cols);
    alone.dout = cut(packed.dout, packed.q_cols);
    const Result one = solve(exec(isa), alone);
    CHECK(one.out == cut(all.out, packed.q_cols));
    CHECK(one.dq == cut(all.dq, packed.q_cols));
    CHECK(one.dk == cut(all.dk, packed.kv_cols));
    CHECK(one.dv == cut(all.dv, packed.kv_cols));
  }
}

TEST("a later token changes nothing before it") {
  for (const Isa isa : runnable_isas()) {
    Problem p(Case{{2, 1, 32, 0.18f}, {100}});
    const Result before = solve(exec(isa), p);
    for (std::int64_t c = 0; c < 32; ++c) p.k[static_cast<std::size_t>(70 * 32 + c)] += 3.0f;
    const Result after = solve(exec(isa), p);
    CHECK(std::equal(before.out.begin(), before.out.begin() + 70 * p.q_cols, after.out.begin()));
    CHECK(!std::equal(before.out.begin() + 70 * p.q_cols, before.out.end(), after.out.begin() + 70 * p.q_cols));
  }
}

TEST("very large scores neither overflow nor lose the sum") {
  for (const Isa isa : runnable_isas()) {
    const Problem p(Case{{2, 1, 64, 1.0f}, {90}}, 12.0f);
    const Result r = solve(exec(isa), p), expected = solve(exec(Isa::scalar), p);
    CHECK_ERROR(relative_error(r.out, expected.out), 1e-4, isa_name(isa));
    CHECK_ERROR(relative_error(r.lse, expected.lse), 1e-6, isa_name(isa));
  }
}

TEST("attention has the same bits with any number of threads") {
  const Problem p(Case{{6, 2, 64, 0.125f}, {130, 5, 77}});
  for (const Isa isa : runnable_isas()) {
    Result one;
    for (const int threads : {1, 2, 5}) {
      ThreadPool threads_pool(threads);
      const Result r = solve(Exec{threads_pool, isa, Compute::f32}, p);
      if (threads == 1) one = r;
      CHECK(r.out == one.out);
      CHECK(r.dq == one.dq);
      CHECK(r.dk == one.dk);
      CHECK(r.dv == one.dv);
    }
  }
}

TEST("attention reads and writes column slices of wider rows") {
  const Problem p(Case{{4, 2, 16, 0.25f}, {20, 11}});
  const std::int64_t stride = p.q_cols + 2 * p.kv_cols;
  for (const Isa isa : runnable_isas()) {
    const Result dense = solve(exec(isa), p);
    std::vector<float> qkv(static_cast<std::size_t>(p.tokens * stride)), dqkv = poisoned(p.tokens * stride);
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      std::copy_n(p.q.begin() + t * p.q_cols, p.q_cols, qkv.begin() + t * stride);
      std::copy_n(p.k.begin() + t * p.kv_cols, p.kv_cols, qkv.begin() + t * stride + p.q_cols);
      std::copy_n(p.v.begin() + t * p.kv_cols, p.kv_cols, qkv.begin() + t * stride + p.q_cols + p.kv_cols);
    }
    const ConstRows all{qkv.data(), p.tokens, stride};
    const Rows grads{dqkv.data(), p.tokens, stride};
    attention_backward(exec(isa), p.shape, all.slice(0, p.q_cols), all.slice(p.q_cols, p.kv_cols), all.slice(p.q_cols + p.kv_cols, p.kv_cols), p.offsets,
                       ConstRows{dense.out.data(), p.tokens, p.q_cols}, dense.lse.data(), {p.dout.data(), p.tokens, p.q_cols},
                       grads.slice(0, p.q_cols), grads.slice(p.q_cols, p.kv_cols), grads.slice(p.q_cols + p.kv_cols, p.kv_cols));
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      CHECK(std::equal(grads.row(t), grads.row(t) + p.q_cols, dense.dq.begin() + t * p.q_cols));
      CHECK(std::equal(grads.row(t) + p.q_cols + p.kv_cols, grads.row(t) + stride, dense.dv.begin() + t * p.kv_cols));
    }
  }
}

TEST("attention refuses offsets that do not cover the tokens in order") {
  std::vector<float> x(64);
  const AttentionShape shape{1, 1, 8, 1.0f};
  const ConstRows in{x.data(), 4, 8};
  for (const std::vector<std::int64_t>& offsets : {std::vector<std::int64_t>{}, {0, 3}, {1, 4}, {0, 3, 2, 4}})
    CHECK_THROWS(invalid, attention_forward(exec(Isa::scalar), shape, in, in, in, offsets, {x.data(), 4, 8}, nullptr));
}

}  // namespace engine
