#include "infer/sampler.h"

#include <cmath>
#include <map>

#include "core/test.h"

using namespace engine;

namespace {

// Tokens that `draws` draws from these logits give, with their counts.
std::map<std::uint32_t, int> drawn(const Sampling& sampling, const std::vector<float>& logits, int draws, std::vector<std::uint32_t> prompt = {}) {
  TokenSampler sampler(sampling, prompt);
  std::map<std::uint32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.choose(logits, i)];
  return counts;
}

Sampling at_temperature(double temperature) {
  Sampling sampling;
  sampling.temperature = temperature;
  sampling.seed = 42;
  return sampling;
}

const std::vector<float> kLogits{0.0f, std::log(2.0f), std::log(4.0f), std::log(8.0f), -30.0f};  // probabilities 1 : 2 : 4 : 8

}  // namespace

TEST("greedy takes the largest logit, the lowest id among equals") {
  TokenSampler sampler({}, {});
  CHECK_EQ(sampler.choose(std::vector<float>{1, 3, 2, 3}, 0), 1u);
}

TEST("drawn tokens are distributed as the softmax at their temperature") {
  const int draws = 30000;
  auto counts = drawn(at_temperature(1), kLogits, draws);
  for (std::uint32_t t = 0; t < 4; ++t) CHECK_CLOSE(counts[t] / static_cast<double>(draws), (1 << t) / 15.0, 0.01);
  CHECK_EQ(counts[4], 0);
  counts = drawn(at_temperature(0.5), kLogits, draws);
  for (std::uint32_t t = 0; t < 4; ++t) CHECK_CLOSE(counts[t] / static_cast<double>(draws), (1 << (2 * t)) / 85.0, 0.01);
}

TEST("the same seed and position give the same token, another seed or position may not") {
  TokenSampler a(at_temperature(1), {}), b(at_temperature(1), {});
  Sampling other = at_temperature(1);
  other.seed = 43;
  TokenSampler c(other, {});
  int differs_by_seed = 0, differs_by_position = 0;
  for (int i = 0; i < 100; ++i) {
    CHECK_EQ(a.choose(kLogits, i), b.choose(kLogits, i));
    differs_by_seed += a.choose(kLogits, i) != c.choose(kLogits, i);
    differs_by_position += a.choose(kLogits, i) != a.choose(kLogits, i + 1);
  }
  CHECK(differs_by_seed > 10 && differs_by_position > 10);
}

TEST("top-k, top-p and min-p each keep the tokens they name and no other") {
  Sampling sampling = at_temperature(1);
  sampling.top_k = 2;
  auto counts = drawn(sampling, kLogits, 5000);
  CHECK(counts.size() == 2 && counts.contains(3) && counts.contains(2));
  CHECK_CLOSE(counts[3] / 5000.0, 2.0 / 3, 0.03);

  sampling = at_temperature(1);
  sampling.top_p = 0.6;  // 8/15 alone is not enough
  counts = drawn(sampling, kLogits, 5000);
  CHECK(counts.size() == 2 && counts.contains(3) && counts.contains(2));
  sampling.top_p = 0.5;
  CHECK_EQ(drawn(sampling, kLogits, 1000).size(), 1u);

  sampling = at_temperature(1);
  sampling.min_p = 0.2;  // of 8: 1.6
  counts = drawn(sampling, kLogits, 5000);
  CHECK(counts.size() == 3 && !counts.contains(0));
}

TEST("the filters apply after the temperature, in the order top-k, top-p, min-p") {
  // At T = 2 the masses are 1 : √2 : 2 : √8, so 0.6 of the mass needs two tokens, and of the top three alone it still needs two.
  Sampling sampling = at_temperature(2);
  sampling.top_p = 0.9;
  CHECK_EQ(drawn(sampling, kLogits, 5000).size(), 4u);
  sampling.temperature = 0.5;  // 64/85 + 16/85 = 0.94
  CHECK_EQ(drawn(sampling, kLogits, 5000).size(), 2u);
  sampling.temperature = 1;
  sampling.top_k = 3;  // 8 + 4 = 12 of 14 is 0.857: all three are needed
  CHECK_EQ(drawn(sampling, kLogits, 5000).size(), 3u);
  sampling.top_p = 0.85;  // of 14, not of 15, where 12 would be 0.8
  CHECK_EQ(drawn(sampling, kLogits, 5000).size(), 2u);
}

TEST("a wide distribution is cut at the same place however much of it must be sorted") {
  std::vector<float> logits(2000);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = -0.0001f * static_cast<float>((i * 7919) % 2000);
  Sampling sampling = at_temperature(1);
  sampling.top_p = 0.75;
  double total = 0, reached = 0;
  for (int rank = 0; rank < 2000; ++rank) total += std::exp(-0.0001 * rank);
  int last = 0;
  for (; reached < 0.75 * total; ++last) reached += std::exp(-0.0001 * last);
  for (const auto& [token, count] : drawn(sampling, logits, 4000)) CHECK((token * 7919) % 2000 < static_cast<std::uint32_t>(last));
}

TEST("bias and penalties change the choice as their formulas say") {
  Sampling sampling;
  sampling.logit_bias = {{0, 10.0f}};
  CHECK_EQ(TokenSampler(sampling, {}).choose(kLogits, 0), 0u);

  sampling = {};
  sampling.repetition_penalty = 4;  // log 8 / 4 is below log 4; prompt tokens count
  CHECK_EQ(TokenSampler(sampling, std::vector<std::uint32_t>{3}).choose(kLogits, 0), 2u);
  CHECK_EQ(TokenSampler(sampling, std::vector<std::uint32_t>{1}).choose(kLogits, 0), 3u);
  const std::vector<float> negative{-1.0f, -1.5f};
  CHECK_EQ(TokenSampler(sampling, std::vector<std::uint32_t>{0}).choose(negative, 0), 1u);

  sampling = {};
  sampling.presence_penalty = 1;
  TokenSampler presence(sampling, std::vector<std::uint32_t>{3});
  CHECK_EQ(presence.choose(kLogits, 0), 3u);  // the prompt does not count
  presence.accept(3);
  CHECK_EQ(presence.choose(kLogits, 0), 2u);

  sampling = {};
  sampling.frequency_penalty = 0.4;
  sampling.max_tokens = 100;
  TokenSampler frequency(sampling, {});
  frequency.accept(3);
  CHECK_EQ(frequency.choose(kLogits, 0), 3u);
  frequency.accept(3);
  CHECK_EQ(frequency.choose(kLogits, 0), 2u);
}

TEST("a stop token finishes as stop, the last allowed token as length") {
  Sampling sampling;
  sampling.max_tokens = 2;
  sampling.stop_token_ids = {7};
  TokenSampler sampler(sampling, {});
  CHECK(sampler.accept(1) == Finish::none);
  CHECK(sampler.accept(2) == Finish::length);
  TokenSampler stopped(sampling, {});
  CHECK(stopped.accept(7) == Finish::stop);
}

TEST("the most likely tokens are reported with their log-probabilities") {
  const auto top = top_logprobs(kLogits, 3, std::log(15.0));
  CHECK_EQ(top.size(), 3u);
  CHECK_EQ(top[0].token, 3u);
  CHECK_EQ(top[2].token, 1u);
  CHECK_CLOSE(top[0].logprob, std::log(8.0 / 15), 1e-6);
  CHECK_EQ(top_logprobs(kLogits, 50, 0).size(), 5u);
  CHECK(top_logprobs(std::vector<float>{1, 1, 1}, 2, 0)[1].token == 1);
}

TEST("settings out of range are refused") {
  const auto check = [](auto change) {
    Sampling sampling;
    change(sampling);
    check_sampling(sampling, 10);
  };
  check([](Sampling&) {});
  CHECK_THROWS(invalid, check([](Sampling& s) { s.temperature = -1; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.temperature = std::nan(""); }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.top_p = 0; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.top_p = 1.5; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.top_k = -1; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.min_p = 2; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.repetition_penalty = 0; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.max_tokens = 0; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.stop_token_ids = {10}; }));
  CHECK_THROWS(invalid, check([](Sampling& s) { s.logit_bias = {{11, 1.0f}}; }));
}
