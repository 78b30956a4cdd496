#include "ops/cross_entropy.h"

#include "ops/op_test.h"

namespace engine {
using namespace test;

TEST("cross entropy equals its definition with every instruction set at odd vocabulary sizes") {
  for (const std::int64_t vocab : {1, 2, 63, 65, 4097})
    for (const float softcap : {0.0f, 3.0f}) {
      const std::int64_t rows = 5;
      const auto logits = random_values(rows * vocab, 1, 4.0f);
      const std::vector<std::uint32_t> targets = {0, static_cast<std::uint32_t>(vocab - 1), static_cast<std::uint32_t>(vocab / 2), 0, 0};
      const std::vector<float> weights = {0.25f, 1.0f, 0.0f, 0.5f, 2.0f};
      std::vector<float> d0, l0;
      double total0 = 0;
      for (const Isa isa : runnable_isas()) {
        auto d = logits, losses = poisoned(rows);
        const double total = cross_entropy(exec(isa), {d.data(), rows, vocab}, targets, weights, softcap, LogitGradient::in_place, losses.data());
        if (isa == Isa::scalar) d0 = d, l0 = losses, total0 = total;
        CHECK_ERROR(relative_error(d, d0), 3e-6, isa_name(isa), " vocabulary ", vocab);
        CHECK_ERROR(relative_error(losses, l0), 2e-6, isa_name(isa), " vocabulary ", vocab);
        CHECK_CLOSE(total, total0, 1e-5 * (1 + std::abs(total0)));
        for (std::int64_t c = 0; c < vocab; ++c) CHECK_EQ(d[static_cast<std::size_t>(2 * vocab + c)], 0.0f);
      }
    }
}

TEST("the logit gradient agrees with finite differences, softcap included") {
  const std::int64_t rows = 3, vocab = 19;
  const std::vector<std::uint32_t> targets = {4, 0, 18};
  const std::vector<float> weights = {1.0f, 0.0f, 0.3f};
  for (const Isa isa : runnable_isas())
    for (const float softcap : {0.0f, 2.0f}) {
      auto logits = random_values(rows * vocab, 1, 2.0f);
      auto d = logits;
      cross_entropy(exec(isa), {d.data(), rows, vocab}, targets, weights, softcap, LogitGradient::in_place, nullptr);
      const auto loss = [&] { return cross_entropy(exec(isa), {logits.data(), rows, vocab}, targets, weights, softcap, LogitGradient::none, nullptr); };
      CHECK_ERROR(finite_difference_error(logits, d, loss), 1e-3, isa_name(isa));
    }
}

TEST("losses without gradient leave the logits alone, and chunks give the bits of the whole") {
  const std::int64_t rows = 10, vocab = 1000;
  const auto logits = random_values(rows * vocab, 1, 3.0f);
  const std::vector<std::uint32_t> targets(10, 7);
  const std::vector<float> weights(10, 0.1f);
  for (const Isa isa : runnable_isas()) {
    auto whole = logits, chunked = logits, losses = poisoned(rows), pieces = poisoned(rows);
    cross_entropy(exec(isa), {whole.data(), rows, vocab}, targets, weights, 0, LogitGradient::none, losses.data());
    CHECK(whole == logits);
    cross_entropy(exec(isa), {whole.data(), rows, vocab}, targets, weights, 0, LogitGradient::in_place, losses.data());
    for (std::int64_t at = 0; at < rows; at += 5)
      cross_entropy(exec(isa), {chunked.data() + at * vocab, 5, vocab}, std::span(targets).first(5), std::span(weights).first(5), 0,
                    LogitGradient::in_place, pieces.data() + at);
    CHECK(whole == chunked);
    CHECK(losses == pieces);
  }
}

TEST("logits of any size give finite losses, and uniform ones log V") {
  for (const Isa isa : runnable_isas()) {
    std::vector<float> logits(100, 3e37f), losses(1);
    const std::vector<std::uint32_t> target = {5};
    const std::vector<float> weight = {1.0f};
    cross_entropy(exec(isa), {logits.data(), 1, 100}, target, weight, 0, LogitGradient::none, losses.data());
    std::vector<float> small(100, -7.0f);
    cross_entropy(exec(isa), {small.data(), 1, 100}, target, weight, 0, LogitGradient::none, losses.data());
    CHECK_CLOSE(losses[0], std::log(100.0), 1e-5);
    small[5] = 500.0f;
    cross_entropy(exec(isa), {small.data(), 1, 100}, target, weight, 0, LogitGradient::in_place, losses.data());
    CHECK_CLOSE(losses[0], 0.0, 1e-6);
    for (const float d : small) CHECK_CLOSE(d, 0.0, 1e-6);
  }
}

TEST("cross entropy refuses a target beyond the vocabulary") {
  std::vector<float> logits(8);
  CHECK_THROWS(invalid, cross_entropy(exec(Isa::scalar), {logits.data(), 1, 8}, std::vector<std::uint32_t>{8}, std::vector<float>{1.0f}, 0,
                                      LogitGradient::none, nullptr));
}

TEST("softcapping equals its formula with every instruction set") {
  const auto x = random_values(4097, 1, 50.0f);
  for (const Isa isa : runnable_isas()) {
    auto y = x;
    softcap_logits(exec(isa), {y.data(), 1, 4097}, 30.0f);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK_CLOSE(y[i], 30.0 * std::tanh(double{x[i]} / 30.0), 2e-5);
  }
}

}  // namespace engine
