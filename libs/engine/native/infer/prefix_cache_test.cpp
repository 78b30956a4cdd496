// Prefix reuse and the counting of blocks, through a real model and generator.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "core/rng.h"
#include "core/test.h"
#include "infer/generator.h"
#include "infer/host_kv_memory.h"
#include "model/golden_case.h"

using namespace engine;
using namespace engine::test;

namespace {

std::shared_ptr<Model> tiny() {
  for (const GoldenCase& c : family_goldens())
    if (c.name == "llama3") return std::make_shared<Model>(c.dir, LoadOptions{QuantizeOnLoad::none, Compute::f32, 2});
  throw Error(Code::internal, "no golden llama3");
}

PrefixScope scope_of(std::uint8_t tenant) {
  PrefixScope scope{};
  scope[0] = tenant;
  return scope;
}

struct Answer {
  std::vector<std::uint32_t> ids;
  std::vector<float> logprobs;
  std::int64_t cached = 0;
};

// Counts requests that have not ended.
struct Open {
  std::mutex mutex;
  std::condition_variable changed;
  std::int64_t count = 0;
  void add() {
    const std::lock_guard lock(mutex);
    ++count;
  }
  void end() {
    const std::lock_guard lock(mutex);
    --count;
    changed.notify_all();
  }
  void wait_below(std::int64_t most) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return count <= most; });
  }
};

Answer ask(Generator& generator, const std::vector<std::uint32_t>& prompt, std::optional<PrefixScope> scope, std::int64_t count = 6) {
  Answer answer;
  Open open;
  open.add();
  GenerateRequest request;
  request.tokens = prompt;
  request.scope = scope;
  request.sampling.max_tokens = count;
  generator.submit(std::move(request), {[&](const GeneratedToken& token) {
                                          answer.ids.push_back(token.token);
                                          answer.logprobs.push_back(token.logprob);
                                          answer.cached = token.cached;
                                        },
                                        [&](const Error*) { open.end(); }});
  open.wait_below(0);
  return answer;
}

std::vector<std::uint32_t> prompt_of(std::int64_t count, std::uint64_t seed, std::int64_t vocab) {
  std::vector<std::uint32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(Philox{seed, 0}.word(static_cast<std::uint64_t>(i)) % static_cast<std::uint32_t>(vocab));
  return tokens;
}

}  // namespace

TEST("a prompt that begins like an earlier one is read from where they part, and its answer is the same bit for bit") {
  const auto model = tiny();
  const std::int64_t vocab = model->spec().vocab;
  auto long_prompt = prompt_of(75, 1, vocab);
  auto other = long_prompt;
  other[70] = (other[70] + 1) % static_cast<std::uint32_t>(vocab);
  Generator alone(model, {}), shared(model, {});
  for (const auto& [prompt, cached] : {std::pair{long_prompt, 0}, {long_prompt, 74}, {other, 70}, {std::vector(long_prompt.begin(), long_prompt.begin() + 64), 63}}) {
    const Answer expected = ask(alone, prompt, std::nullopt), got = ask(shared, prompt, scope_of(1));
    CHECK(got.ids == expected.ids);
    CHECK(got.logprobs == expected.logprobs);
    CHECK_EQ(got.cached, cached);
    CHECK_EQ(expected.cached, 0);
  }
  CHECK_EQ(shared.load().used_blocks, 0);
}

TEST("what goes on with an answer finds the answer's own blocks") {
  const auto model = tiny();
  Generator generator(model, {});
  auto tokens = prompt_of(40, 2, model->spec().vocab);
  const Answer first = ask(generator, tokens, scope_of(1), 8);
  tokens.insert(tokens.end(), first.ids.begin(), first.ids.end());
  CHECK_EQ(ask(generator, tokens, scope_of(1)).cached, 47);  // the last token was chosen, but never read
}

TEST("one scope never finds what another left, and nothing stays without a scope") {
  const auto model = tiny();
  Generator generator(model, {});
  const auto prompt = prompt_of(64, 3, model->spec().vocab);
  ask(generator, prompt, std::nullopt);
  CHECK_EQ(ask(generator, prompt, scope_of(1)).cached, 0);
  CHECK_EQ(ask(generator, prompt, scope_of(2)).cached, 0);
  CHECK_EQ(ask(generator, prompt, scope_of(2)).cached, 63);
}

TEST("a cache too small for all it remembers forgets what was used longest ago, and answers stay the same") {
  const auto model = tiny();
  const std::int64_t block = HostKvMemory::block_bytes(model->spec(), Compute::f32);
  Generator roomy(model, {}), small(model, {.kv_bytes = 7 * block});
  for (std::uint64_t round = 0; round < 30; ++round) {
    const auto prompt = prompt_of(40 + static_cast<std::int64_t>(round * 7 % 60), round % 5, model->spec().vocab);
    CHECK(ask(small, prompt, scope_of(1)).ids == ask(roomy, prompt, std::nullopt).ids);
  }
  CHECK_EQ(small.load().used_blocks, 0);
  CHECK_EQ(small.load().total_blocks, 7);
}

namespace {

// A follower's own picture of a cache, made of nothing but what it was told; a change that does not fit into it is a fault.
class Mirror {
 public:
  void take(const std::vector<PrefixChange>& changes, bool whole) {
    const std::lock_guard lock(mutex_);
    faults_ += whole == begun_ ? 1 : 0;  // the whole comes first, and once
    begun_ = true;
    for (const PrefixChange& change : changes) {
      if (change.stored) {
        faults_ += change.parent != 0 && !nodes_.contains(change.parent) ? 1 : 0;
        faults_ += nodes_.emplace(change.node, change).second ? 0 : 1;
      } else {
        faults_ += nodes_.erase(change.node) == 1 ? 0 : 1;
      }
    }
  }
  // Texts from their beginnings: scope and tokens of each block's whole path.
  std::set<std::pair<PrefixScope, std::vector<std::uint32_t>>> texts() const {
    const std::lock_guard lock(mutex_);
    std::set<std::pair<PrefixScope, std::vector<std::uint32_t>>> all;
    for (const auto& [id, change] : nodes_) {
      std::vector<std::uint32_t> tokens;
      for (auto at = id; at != 0; at = nodes_.at(at).parent) tokens.insert(tokens.begin(), nodes_.at(at).tokens.begin(), nodes_.at(at).tokens.end());
      all.emplace(change.scope, std::move(tokens));
    }
    return all;
  }
  int faults() const {
    const std::lock_guard lock(mutex_);
    return faults_;
  }
  bool begun() const {
    const std::lock_guard lock(mutex_);
    return begun_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::uint64_t, PrefixChange> nodes_;
  bool begun_ = false;
  int faults_ = 0;
};

}  // namespace

TEST("whoever follows a cache that forgets knows what it remembers, from whenever he begins, and hears that it is gone") {
  const auto model = tiny();
  const std::int64_t block = HostKvMemory::block_bytes(model->spec(), Compute::f32), vocab = model->spec().vocab;
  Mirror early, late;
  std::atomic<int> ends{0};
  const auto follow = [&](Generator& generator, Mirror& mirror) {
    return generator.watch_cache({[&](const auto& changes, bool whole) { mirror.take(changes, whole); }, [&] { ++ends; }});
  };
  {
    Generator generator(model, {.kv_bytes = 9 * block});
    follow(generator, early);
    const auto ask_some = [&](std::uint64_t seed) {
      for (std::uint64_t i = 0; i < 20; ++i)
        ask(generator, prompt_of(20 + static_cast<std::int64_t>(i * 11 % 60), (seed + i) % 6, vocab), i % 5 == 4 ? std::nullopt : std::optional(scope_of(static_cast<std::uint8_t>(i % 2))), 8);
    };
    ask_some(0);
    const Generator::WatchId second = follow(generator, late);
    ask_some(3);
    Mirror now;
    const Generator::WatchId third = follow(generator, now);
    while (!now.begun()) std::this_thread::yield();
    CHECK(now.texts() == early.texts());
    CHECK(now.texts() == late.texts());
    CHECK(!now.texts().empty());
    CHECK(now.texts().size() <= 9);
    CHECK_EQ(early.faults() + late.faults() + now.faults(), 0);
    generator.unwatch_cache(third);
    generator.unwatch_cache(second);
    const auto before = late.texts();
    ask_some(1);
    CHECK(late.texts() == before);
    CHECK(early.texts() != before);
    // Every text that it tells of is found.
    for (const auto& [scope, tokens] : early.texts())
      if (tokens.size() % static_cast<std::size_t>(generator.block_tokens()) == 0) {
        auto more = tokens;
        more.push_back(1);
        CHECK_EQ(ask(generator, more, scope, 1).cached, static_cast<std::int64_t>(tokens.size()));
        break;
      }
  }
  CHECK_EQ(ends, 1);
}

TEST("100,000 requests cancelled at random times, with shared beginnings, priorities and a cache too small for them, leave no block held") {
  const auto model = tiny();
  const std::int64_t block = HostKvMemory::block_bytes(model->spec(), Compute::f32), vocab = model->spec().vocab;
  Generator generator(model, {.max_running = 16, .prefill_tokens = 64, .tokens_beside = 32, .kv_bytes = 24 * block});
  std::vector<std::vector<std::uint32_t>> prompts;
  for (std::uint64_t i = 0; i < 40; ++i) {
    prompts.push_back(prompt_of(1 + static_cast<std::int64_t>(i * 3), i % 4, vocab));
  }
  const Philox random{99, 0};
  std::uint64_t draws = 0;
  const auto below = [&](std::uint32_t n) { return random.word(draws++) % n; };
  Open open;
  std::vector<Generator::RequestId> live;
  std::atomic<std::int64_t> tokens{0};
#if defined(__SANITIZE_ADDRESS__)
  constexpr std::int64_t kRequests = 10000;  // the same paths, at a tenth of the speed
#else
  constexpr std::int64_t kRequests = 100000;
#endif
  for (std::int64_t i = 0; i < kRequests; ++i) {
    open.wait_below(64);
    GenerateRequest request;
    request.tokens = prompts[below(40)];
    request.sampling.max_tokens = 1 + below(60);
    request.priority = static_cast<Priority>(below(3));
    if (below(4) == 0) request.scored = below(static_cast<std::uint32_t>(request.tokens.size()));
    if (below(4) != 0) request.scope = scope_of(static_cast<std::uint8_t>(below(3)));
    open.add();
    live.push_back(generator.submit(std::move(request), {[&](const GeneratedToken&) { ++tokens; }, [&](const Error*) { open.end(); }}));
    // Some at once, some later, some twice, some when they have ended.
    while (live.size() > 48 || (!live.empty() && below(2) == 0)) {
      const std::size_t at = below(static_cast<std::uint32_t>(live.size()));
      generator.cancel(live[at]);
      if (below(8) != 0) live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  for (const auto id : live) generator.cancel(id);
  open.wait_below(0);
  const GeneratorLoad load = generator.load();
  CHECK_EQ(load.used_blocks, 0);
  CHECK_EQ(load.running, 0);
  CHECK_EQ(load.waiting, 0);
  CHECK(tokens > 0);
  // Every block can still be had at once.
  CHECK_EQ(ask(generator, prompt_of(100, 50, vocab), scope_of(9), 20).ids.size(), 20u);
}
