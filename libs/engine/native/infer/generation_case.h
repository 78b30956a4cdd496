// generation_case.h: test support: requests to a generator, and what came of them.
#pragma once

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/test.h"
#include "infer/generator.h"
#include "model/golden_case.h"

namespace engine::test {

struct Outcome {
  std::vector<GeneratedToken> tokens;
  std::optional<Code> error;
  std::vector<std::uint32_t> ids() const {
    std::vector<std::uint32_t> list;
    for (const GeneratedToken& token : tokens) list.push_back(token.token);
    return list;
  }
  std::vector<float> logprobs() const {
    std::vector<float> list;
    for (const GeneratedToken& token : tokens) list.push_back(token.logprob);
    return list;
  }
};

// A request under way; get() waits for its end.
struct Running {
  std::shared_ptr<Outcome> outcome = std::make_shared<Outcome>();
  std::shared_ptr<std::promise<void>> done = std::make_shared<std::promise<void>>();
  Generator::RequestId id = 0;
  Outcome get() {
    done->get_future().wait();
    return *outcome;
  }
};

inline Running start(Generator& generator, std::vector<std::uint32_t> prompt, const Sampling& sampling, std::shared_ptr<const LoraAdapter> adapter = nullptr,
                     std::function<void(std::size_t)> on_count = {}) {
  Running running;
  GenerateListener listener;
  listener.on_token = [outcome = running.outcome, on_count](const GeneratedToken& token) {
    outcome->tokens.push_back(token);
    if (on_count) on_count(outcome->tokens.size());
  };
  listener.on_end = [outcome = running.outcome, done = running.done](const Error* error) {
    if (error != nullptr) outcome->error = error->code();
    done->set_value();
  };
  running.id = generator.submit({std::move(prompt), std::move(adapter), sampling}, std::move(listener));
  return running;
}

struct Pooled {
  std::vector<float> vector;
  std::optional<Code> error;
};

// A sequence that becomes a vector.
struct RunningPool {
  std::shared_ptr<Pooled> outcome = std::make_shared<Pooled>();
  std::shared_ptr<std::promise<void>> done = std::make_shared<std::promise<void>>();
  Generator::RequestId id = 0;
  Pooled get() {
    done->get_future().wait();
    return *outcome;
  }
};

inline RunningPool pool(Generator& generator, std::vector<std::uint32_t> tokens, Pooling pooling, std::shared_ptr<const LoraAdapter> adapter = nullptr,
                        std::optional<PrefixScope> scope = {}) {
  RunningPool running;
  GenerateRequest request{.tokens = std::move(tokens), .adapter = std::move(adapter), .sampling = {}, .scope = scope};
  request.pooling = pooling;
  GenerateListener listener;
  listener.on_vector = [outcome = running.outcome](std::vector<float> vector) { outcome->vector = std::move(vector); };
  listener.on_end = [outcome = running.outcome, done = running.done](const Error* error) {
    if (error != nullptr) outcome->error = error->code();
    done->set_value();
  };
  running.id = generator.submit(std::move(request), std::move(listener));
  return running;
}

inline Sampling greedy(std::int64_t count) {
  Sampling sampling;
  sampling.max_tokens = count;
  return sampling;
}

inline bool same_bits(const GeneratedToken& a, const GeneratedToken& b) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) { return x.token == y.token && x.logprob == y.logprob; };
  return a.token == b.token && a.logprob == b.logprob && a.finish == b.finish && std::ranges::equal(a.top, b.top, same);
}

inline std::shared_ptr<const LoraAdapter> random_adapter(const ModelSpec& spec, std::int64_t rank, std::uint64_t seed) {
  auto adapter = std::make_shared<LoraAdapter>(spec, LoraConfig{rank, 16, 0, false, known_target_modules(), ""});
  const Philox random{seed, 0};
  for (std::int64_t i = 0; i < adapter->size(); ++i) adapter->data()[i] = 0.3f * (random.uniform(static_cast<std::uint64_t>(i)) - 0.5f);
  return adapter;
}

inline GoldenCase family(const std::string& name) {
  for (GoldenCase& c : family_goldens())
    if (c.name == name) return std::move(c);
  throw Error(Code::internal, "no golden " + name);
}

}  // namespace engine::test
