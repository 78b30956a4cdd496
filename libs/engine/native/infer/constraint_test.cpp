#include "infer/constraint.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "core/rng.h"
#include "core/test.h"
#include "infer/sampler.h"

using namespace engine;

namespace {

std::shared_ptr<const TokenTrie> vocabulary(const std::vector<std::string>& tokens) {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint32_t> offsets{0};
  for (const std::string& token : tokens) {
    bytes.insert(bytes.end(), token.begin(), token.end());
    offsets.push_back(static_cast<std::uint32_t>(bytes.size()));
  }
  return std::make_shared<const TokenTrie>(bytes, offsets);
}

// Accepts exactly `words`, by a tree of them.
ByteAutomaton words(const std::vector<std::string>& list) {
  ByteAutomaton a;
  a.classes = 256;
  for (int byte = 0; byte < 256; ++byte) a.class_of.push_back(static_cast<std::uint8_t>(byte));
  const auto add_state = [&a] {
    a.next.insert(a.next.end(), 256, ByteAutomaton::kDead);
    a.accepting.push_back(0);
    return static_cast<std::int32_t>(a.accepting.size()) - 1;
  };
  add_state();
  for (const std::string& word : list) {
    std::int32_t state = 0;
    for (const char c : word) {
      const auto at = static_cast<std::size_t>(state * 256 + static_cast<std::uint8_t>(c));
      if (a.next[at] == ByteAutomaton::kDead) {
        const std::int32_t added = add_state();
        a.next[at] = added;
      }
      state = a.next[at];
    }
    a.accepting[static_cast<std::size_t>(state)] = 1;
  }
  return a;
}

std::set<std::uint32_t> ids(const TokenMask& mask) {
  std::set<std::uint32_t> set;
  for (std::uint32_t t = 0; t < mask.bits.size() * 64; ++t)
    if (mask.has(t)) set.insert(t);
  CHECK_EQ(static_cast<std::int64_t>(set.size()), mask.count);
  return set;
}

//                                      0    1     2       3    4     5    6   7
const std::vector<std::string> kTokens{"", "a", "ab", "abc", "b", "bc", "ab", "x"};

// Texts that are x, or lists of such texts without commas: [[x][]x].
ByteAutomaton lists() {
  ByteAutomaton a;
  a.classes = 4;
  a.class_of.assign(256, 0);
  a.class_of['['] = 1;
  a.class_of[']'] = 2;
  a.class_of['x'] = 3;
  const auto dead = ByteAutomaton::kDead, open = ByteAutomaton::opening(2);
  //        other  [     ]     x
  a.next = {dead, open, dead, 1,      // 0: nothing yet
            dead, dead, dead, dead,   // 1: done
            dead, open, 3,    2,      // 2: in a list
            dead, dead, dead, dead};  // 3: the list has ended
  a.accepting = {0, 1, 0, 0};
  a.outcomes = {ByteAutomaton::kNone, ByteAutomaton::kNone, ByteAutomaton::kNone, 0};
  a.heights = {0, 0, 0, 0};
  a.returns = {{0, 0, 1}, {2, 0, 2}};
  return a;
}

}  // namespace

TEST("where brackets nest, the allowed tokens are those that fit what is open, found by brute force") {
  const std::vector<std::string> tokens{"x", "[", "]", "[[", "]]", "]x", "[]", "x]", "]]]", "][", ""};
  const auto trie = vocabulary(tokens);
  const Constraint constraint(trie, lists());
  // By counting: what may follow `text`.
  const auto fits = [](const std::string& text) {
    std::int64_t depth = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (i > 0 && depth == 0) return false;
      depth += text[i] == '[' ? 1 : text[i] == ']' ? -1 : 0;
      if (depth < 0 || depth > ByteAutomaton::kMaxDepth) return false;
    }
    return true;
  };
  const Philox random{3, 0};
  std::uint64_t draws = 0;
  for (int round = 0; round < 50; ++round) {
    std::string text;
    ConstraintPlace place;
    while (!constraint.complete(place) && text.size() < 200) {
      std::vector<std::uint32_t> possible;
      for (std::uint32_t token = 0; token < tokens.size(); ++token) {
        const bool fit = !tokens[token].empty() && fits(text + tokens[token]);
        CHECK_EQ(constraint.allowed(place)->has(token), fit);
        CHECK_EQ(constraint.advance(place, token).has_value(), fit);
        if (fit) possible.push_back(token);
      }
      CHECK(!possible.empty());
      const std::uint32_t token = possible[random.word(draws++) % possible.size()];
      text += tokens[token];
      place = *constraint.advance(place, token);
    }
  }
  ConstraintPlace deep;
  for (std::int64_t i = 0; i < ByteAutomaton::kMaxDepth; ++i) deep = *constraint.advance(deep, 1);
  CHECK(!constraint.advance(deep, 1) && !constraint.allowed(deep)->has(1) && constraint.allowed(deep)->has(8));
  ConstraintPlace done = *constraint.advance(*constraint.advance({}, 3), 4);
  CHECK(constraint.complete(done) && constraint.allowed(done)->count == 0);
}

TEST("a stack that leads out of the table is refused") {
  const auto trie = vocabulary(kTokens);
  const auto refuse = [&](auto change) {
    ByteAutomaton a = lists();
    change(a);
    CHECK_THROWS(invalid, Constraint(trie, a));
  };
  refuse([](ByteAutomaton& a) { a.next[1] = ByteAutomaton::opening(4); });
  refuse([](ByteAutomaton& a) { a.outcomes.pop_back(); });
  refuse([](ByteAutomaton& a) { a.outcomes[0] = -2; });
  refuse([](ByteAutomaton& a) { a.heights[0] = -1; });
  refuse([](ByteAutomaton& a) { a.heights.clear(); });
  refuse([](ByteAutomaton& a) { a.returns[0].next = 4; });
  refuse([](ByteAutomaton& a) { std::swap(a.returns[0], a.returns[1]); });
  refuse([](ByteAutomaton& a) { a.outcomes.clear(); });
  // One that takes off what is not there ends there.
  ByteAutomaton loose = lists();
  loose.next[2] = 3;
  const Constraint constraint(vocabulary({"]", "["}), loose);
  CHECK(!constraint.advance({}, 0) && constraint.advance({}, 1));
}

TEST("the allowed tokens of a state are those whose bytes the automaton can read, found by brute force") {
  const auto trie = vocabulary(kTokens);
  const Constraint constraint(trie, words({"abc", "abx", "b"}));
  CHECK(ids(*constraint.allowed({})) == (std::set<std::uint32_t>{1, 2, 3, 4, 6}));
  for (std::int32_t state = 0; state < 6; ++state)
    for (std::uint32_t token = 0; token < kTokens.size(); ++token)
      CHECK_EQ(constraint.allowed({state})->has(token), constraint.advance({state}, token).has_value());
  CHECK(!constraint.advance({}, 0));
  CHECK(constraint.complete(*constraint.advance({}, 3)));
  CHECK(!constraint.complete({}));
}

TEST("a choice under a constraint is the likeliest of the allowed tokens, and stop tokens only where the output may end") {
  Sampling sampling;
  sampling.constraint = std::make_shared<const Constraint>(vocabulary(kTokens), words({"a", "abc"}));
  sampling.stop_token_ids = {0};
  for (const double temperature : {0.0, 1.0}) {
    sampling.temperature = temperature;
    TokenSampler sampler(sampling, {});
    const std::vector<float> logits{9, 1, 0, 0, 0, 0, 0, 9};
    for (int position = 0; position < 50; ++position) {
      const std::uint32_t token = sampler.choose(logits, position);
      CHECK(token == 1 || token == 2 || token == 3 || token == 6);
      if (temperature == 0) CHECK_EQ(token, 1u);
    }
    CHECK(!sampler.fits(0) && !sampler.fits(7) && sampler.fits(1));
    CHECK(sampler.accept(1) == Finish::none);  // "a" may end or go on
    CHECK(sampler.fits(0));
    CHECK_EQ(sampler.choose(std::vector<float>{90, 0, 0, 0, 0, 0, 0, 99}, 1), 0u);
    CHECK_EQ(sampler.choose(std::vector<float>{-9, 0, 0, 0, 0, 90, 0, 99}, 1), 5u);
    CHECK(sampler.accept(5) == Finish::complete);
  }
}

TEST("top-k and a bias cannot bring a token back that the constraint forbids") {
  Sampling sampling;
  sampling.temperature = 1;
  sampling.top_k = 5;
  sampling.logit_bias = {{7, 100}};
  sampling.constraint = std::make_shared<const Constraint>(vocabulary(kTokens), words({"b"}));
  TokenSampler sampler(sampling, {});
  for (int position = 0; position < 200; ++position) CHECK_EQ(sampler.choose(std::vector<float>(8, 0.0f), position), 4u);
}

TEST("a vocabulary that cannot spell what is asked for gives a token that does not fit") {
  Sampling sampling;
  sampling.constraint = std::make_shared<const Constraint>(vocabulary(kTokens), words({"zebra"}));
  TokenSampler sampler(sampling, {});
  CHECK_EQ(sampling.constraint->allowed({})->count, 0);
  CHECK(!sampler.fits(sampler.choose(std::vector<float>(8, 1.0f), 0)));
}

TEST("a request that goes on with an earlier one's output penalizes it as output") {
  Sampling sampling;
  sampling.presence_penalty = 2;
  const std::vector<std::uint32_t> context{1, 2};
  const std::vector<float> logits{0, 0, 1.5f};
  CHECK_EQ(TokenSampler(sampling, context).choose(logits, 2), 2u);
  CHECK_EQ(TokenSampler(sampling, context, 1).choose(logits, 2), 0u);
}

TEST("tables that are no automaton and offsets that are no vocabulary are refused") {
  ByteAutomaton good = words({"a"});
  check_automaton(good);
  ByteAutomaton bad = good;
  bad.next[0] = 7;
  CHECK_THROWS(invalid, check_automaton(bad));
  bad = good;
  bad.class_of.pop_back();
  CHECK_THROWS(invalid, check_automaton(bad));
  bad = good;
  bad.classes = 3;
  CHECK_THROWS(invalid, check_automaton(bad));
  CHECK_THROWS(invalid, check_automaton(ByteAutomaton{}));
  const std::vector<std::uint8_t> bytes{1, 2};
  CHECK_THROWS(invalid, TokenTrie(bytes, std::vector<std::uint32_t>{0, 3}));
  CHECK_THROWS(invalid, TokenTrie(bytes, std::vector<std::uint32_t>{0, 2, 1, 2}));
  CHECK_THROWS(invalid, TokenTrie(bytes, std::vector<std::uint32_t>{}));
}
