#include "infer/scheduler.h"

#include <algorithm>
#include <map>

#include "core/rng.h"
#include "core/test.h"

using namespace engine;

namespace {

// A cache of `total` blocks of 4 tokens.
struct Blocks {
  std::int64_t total, used = 0;
  std::map<std::uint64_t, std::int64_t> held{};

  BlockStore store() {
    return {[this](std::uint64_t id, std::int64_t tokens) {
              const std::int64_t more = (tokens + 3) / 4 - held[id];
              if (more > total - used) return false;
              held[id] += std::max<std::int64_t>(more, 0);
              used += std::max<std::int64_t>(more, 0);
              return true;
            },
            [this](std::uint64_t id) {
              used -= held[id];
              held.erase(id);
            }};
  }
};

const StepPart* part_of(const StepPlan& plan, std::uint64_t id) {
  const auto found = std::ranges::find(plan.parts, id, &StepPart::sequence);
  return found == plan.parts.end() ? nullptr : &*found;
}

}  // namespace

TEST("a prompt is read in chunks and samples with its last one, then advances by one token") {
  Blocks blocks{100};
  Scheduler scheduler({8, 10}, blocks.store());
  scheduler.add(1, 25);
  StepPlan plan = scheduler.plan();
  CHECK(plan.parts.size() == 1 && plan.parts[0].first == 0 && plan.parts[0].count == 10 && !plan.parts[0].samples);
  scheduler.plan();
  plan = scheduler.plan();
  CHECK(plan.parts[0].first == 20 && plan.parts[0].count == 5 && plan.parts[0].samples);
  scheduler.append(1);
  plan = scheduler.plan();
  CHECK(plan.parts[0].first == 25 && plan.parts[0].count == 1 && plan.parts[0].samples);
  scheduler.remove(1);
  CHECK(scheduler.idle());
  CHECK_EQ(blocks.used, 0);
}

TEST("a step in which sequences advance has so many tokens in all, a quarter of them a prompt's at least") {
  for (const auto& [advancing, read] : {std::pair<std::int64_t, std::int64_t>{1, 15}, {3, 13}, {12, 4}, {20, 4}}) {
    Blocks blocks{1000};
    Scheduler scheduler({32, 100, 16}, blocks.store());
    for (std::int64_t s = 0; s < advancing; ++s) scheduler.add(static_cast<std::uint64_t>(s), 3);
    scheduler.plan();
    for (std::int64_t s = 0; s < advancing; ++s) scheduler.append(static_cast<std::uint64_t>(s));
    scheduler.add(99, 100);
    const StepPlan plan = scheduler.plan();
    CHECK_EQ(plan.parts.size(), static_cast<std::size_t>(advancing + 1));
    CHECK_EQ(part_of(plan, 99)->count, read);
  }
}

TEST("steps in which sequences advance grow in powers of two with what is left to read, to a bound, and shrink again") {
  constexpr std::int64_t kBeside = 16, kWithin = Scheduler::kReadWithinSteps;
  const auto tokens_of = [](const StepPlan& plan) {
    std::int64_t tokens = 0;
    for (const StepPart& part : plan.parts) tokens += part.count;
    return tokens;
  };
  const auto step_tokens = [&](std::int64_t unread, std::int64_t most_growth, Priority advancing, Priority reading) {
    Blocks blocks{10'000};
    Scheduler scheduler({32, 100, kBeside, most_growth}, blocks.store());
    scheduler.add(1, 3, advancing);
    scheduler.plan();
    scheduler.append(1);
    scheduler.add(2, unread / 2, reading);
    scheduler.add(3, unread - unread / 2, reading);
    return tokens_of(scheduler.plan());
  };
  const auto equals = Priority::interactive;
  for (const auto& [unread, tokens] : {std::pair<std::int64_t, std::int64_t>{kBeside * kWithin, 16}, {kBeside * kWithin + 1, 32}, {2 * kBeside * kWithin, 32}, {2 * kBeside * kWithin + 1, 64}, {9'000, 64}})
    CHECK_EQ(step_tokens(unread, 4, equals, equals), tokens);
  CHECK_EQ(step_tokens(9'000, 1, equals, equals), 16);
  CHECK_EQ(step_tokens(9'000, 3, equals, equals), 32);    // powers of two
  CHECK_EQ(step_tokens(9'000, 64, equals, equals), 101);  // never more than when nobody waits for tokens
  CHECK_EQ(step_tokens(9'000, 4, Priority::interactive, Priority::batch), 16);  // the urgent are not slowed for others
  CHECK_EQ(step_tokens(9'000, 4, Priority::batch, Priority::interactive), 64);

  Blocks blocks{10'000};
  Scheduler scheduler({32, 100, kBeside, 4}, blocks.store());
  scheduler.add(1, 3);
  scheduler.plan();
  scheduler.append(1);
  scheduler.add(2, 2 * kBeside * kWithin + 20);
  std::vector<std::int64_t> sizes;
  for (int step = 0; step < 24 && (sizes.empty() || sizes.back() > 1); ++step) {
    sizes.push_back(tokens_of(scheduler.plan()));
    scheduler.append(1);
  }
  CHECK(std::ranges::is_sorted(sizes, std::greater<>{}));
  CHECK(sizes.front() == 64 && std::ranges::count(sizes, 32) > 4 && std::ranges::count(sizes, 16) > 8);
}

TEST("running sequences advance at every step while two waiting prompts share what is left") {
  Blocks blocks{100};
  Scheduler scheduler({8, 10}, blocks.store());
  scheduler.add(1, 3);
  scheduler.plan();
  scheduler.append(1);
  scheduler.add(2, 100);
  scheduler.add(3, 100);
  const StepPlan plan = scheduler.plan();
  CHECK_EQ(plan.parts.size(), 3u);
  CHECK_EQ(part_of(plan, 1)->count, 1);
  CHECK_EQ(part_of(plan, 2)->count, 5);
  CHECK_EQ(part_of(plan, 3)->count, 5);
}

TEST("no more than max_running sequences run, the rest wait their turn") {
  Blocks blocks{100};
  Scheduler scheduler({2, 100}, blocks.store());
  for (std::uint64_t id = 1; id <= 3; ++id) scheduler.add(id, 4);
  StepPlan plan = scheduler.plan();
  CHECK(part_of(plan, 1) && part_of(plan, 2) && !part_of(plan, 3));
  CHECK_EQ(scheduler.waiting(), 1);
  scheduler.append(1);
  scheduler.append(2);
  scheduler.remove(1);
  plan = scheduler.plan();
  CHECK(part_of(plan, 2) && part_of(plan, 3));
}

TEST("a full cache takes the blocks of the sequence admitted last, which is read again later") {
  Blocks blocks{4};  // 16 tokens
  Scheduler scheduler({8, 100}, blocks.store());
  scheduler.add(1, 8);
  scheduler.add(2, 8);
  scheduler.plan();
  scheduler.append(1);
  scheduler.append(2);
  StepPlan plan = scheduler.plan();
  CHECK(plan.preempted == std::vector<std::uint64_t>{2});
  CHECK(part_of(plan, 1) && !part_of(plan, 2));
  scheduler.remove(1);
  plan = scheduler.plan();
  const StepPart* again = part_of(plan, 2);
  CHECK(again != nullptr && again->first == 0 && again->count == 9 && again->samples);
}

TEST("under random arrivals, lengths, cancellations and a small cache every sequence finishes and every block comes back") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Philox random{seed, 0};
    std::uint64_t draws = 0;
    const auto below = [&](std::uint32_t n) { return random.word(draws++) % n; };
    Blocks blocks{12};
    Scheduler scheduler({4, 8}, blocks.store());
    std::map<std::uint64_t, std::int64_t> left, tokens, computed;
    std::uint64_t next = 1;
    int finished = 0;
    for (int step = 0; step < 3000 && finished < 60; ++step) {
      if (next <= 60 && below(3) == 0) {
        tokens[next] = 1 + below(20);
        left[next] = 1 + below(20);  // at most 40 tokens of the 48 that fit
        computed[next] = 0;
        scheduler.add(next++, tokens[next]);
      }
      if (below(20) == 0 && !left.empty()) {
        const std::uint64_t victim = left.begin()->first;
        scheduler.remove(victim);
        left.erase(victim);
        ++finished;
      }
      const StepPlan plan = scheduler.plan();
      for (const std::uint64_t id : plan.preempted) computed[id] = 0;
      for (const StepPart& part : plan.parts) {
        CHECK_EQ(part.first, computed[part.sequence]);
        computed[part.sequence] += part.count;
        CHECK(computed[part.sequence] <= tokens[part.sequence]);
        CHECK_EQ(part.samples, computed[part.sequence] == tokens[part.sequence]);
        CHECK(blocks.held[part.sequence] * 4 >= computed[part.sequence]);
        if (!part.samples) continue;
        scheduler.append(part.sequence);
        ++tokens[part.sequence];
        if (--left[part.sequence] > 0) continue;
        scheduler.remove(part.sequence);
        left.erase(part.sequence);
        ++finished;
      }
    }
    CHECK_EQ(finished, 60);
    CHECK_EQ(blocks.used, 0);
    CHECK(scheduler.idle());
  }
}

TEST("while others advance, prompts are read in smaller chunks") {
  Blocks blocks{100};
  Scheduler scheduler({8, 20, 6}, blocks.store());
  scheduler.add(1, 30);
  StepPlan plan = scheduler.plan();
  CHECK_EQ(part_of(plan, 1)->count, 20);
  plan = scheduler.plan();
  CHECK_EQ(part_of(plan, 1)->count, 10);
  scheduler.append(1);
  scheduler.add(2, 30);
  plan = scheduler.plan();
  CHECK_EQ(part_of(plan, 1)->count, 1);
  CHECK_EQ(part_of(plan, 2)->count, 5);
}

TEST("an urgent sequence goes before those that waited longer, and takes the place of a running one of lower priority") {
  Blocks blocks{100};
  Scheduler scheduler({2, 100}, blocks.store());
  scheduler.add(1, 4, Priority::evaluation);
  scheduler.add(2, 4, Priority::batch);
  scheduler.add(3, 4, Priority::batch);
  StepPlan plan = scheduler.plan();
  CHECK(!part_of(plan, 1) && part_of(plan, 2) && part_of(plan, 3));
  scheduler.append(2);
  scheduler.append(3);
  scheduler.add(4, 4, Priority::interactive);
  plan = scheduler.plan();
  CHECK(plan.preempted == std::vector<std::uint64_t>{3});  // of equals the one admitted last
  CHECK(part_of(plan, 2) && part_of(plan, 4) && !part_of(plan, 3));
  CHECK_EQ(scheduler.waiting(), 2);
}

TEST("whoever waits long enough goes before newer sequences of a higher priority") {
  Blocks blocks{100};
  Scheduler scheduler({1, 100}, blocks.store());
  scheduler.add(1, 4, Priority::interactive);
  scheduler.plan();
  scheduler.append(1);
  scheduler.add(2, 4, Priority::evaluation);
  std::int64_t plans = 0;
  for (; plans < 3 * Scheduler::kAgeSteps; ++plans) {
    const StepPlan plan = scheduler.plan();
    if (part_of(plan, 2) != nullptr) break;
    scheduler.append(1);
    if (plans % 8 != 7) continue;
    scheduler.remove(1);  // before its blocks run out; another urgent one comes at once
    scheduler.add(1, 4, Priority::interactive);
  }
  CHECK(plans >= 2 * Scheduler::kAgeSteps - 1 && plans <= 2 * Scheduler::kAgeSteps + 8);
  for (int step = 0; step < 20; ++step) {
    scheduler.append(2);
    const StepPlan plan = scheduler.plan();
    CHECK(part_of(plan, 2) != nullptr);  // and keeps its place, though an urgent one waits
  }
}

TEST("a lone running sequence gives way to an urgent one in the same step") {
  Blocks blocks{4};
  Scheduler scheduler({1, 100}, blocks.store());
  scheduler.add(1, 8, Priority::batch);
  scheduler.plan();
  scheduler.append(1);
  scheduler.add(2, 8, Priority::interactive);
  const StepPlan plan = scheduler.plan();
  CHECK(part_of(plan, 2) != nullptr && part_of(plan, 1) == nullptr);
}

TEST("tokens that the cache already holds are not read again") {
  Blocks blocks{100};
  BlockStore store = blocks.store();
  store.reuse = [](std::uint64_t) { return 12; };
  Scheduler scheduler({8, 100}, store);
  scheduler.add(1, 30);
  const StepPlan plan = scheduler.plan();
  CHECK(plan.parts[0].first == 12 && plan.parts[0].count == 18 && plan.parts[0].samples);
}
