// scheduler.h: which tokens of which sequences the next step computes. Knows counts and blocks, nothing of models or text.
//   Every running sequence that has read its prompt advances by one token; waiting prompts are read in chunks that share what is left of the
//   step's token budget, at least two at a time, oldest first. When the cache is full, the sequence admitted last gives its blocks back and
//   waits at the front of the queue: it is read again from the start when there is room (recomputed, not swapped).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <unordered_map>
#include <vector>

namespace engine {

struct SchedulerLimits {
  std::int64_t max_running = 64;
  std::int64_t prefill_tokens = 256;  // prompt tokens of one step
};

// Tokens [first, first + count) of a sequence. `samples`: the last of them is the sequence's last token, so the next one is to be chosen.
struct StepPart {
  std::uint64_t sequence = 0;
  std::int64_t first = 0, count = 0;
  bool samples = false;
};
struct StepPlan {
  std::vector<StepPart> parts;
  std::vector<std::uint64_t> preempted;  // gave their blocks back
};

// The cache as the scheduler sees it.
struct BlockStore {
  std::function<bool(std::uint64_t sequence, std::int64_t tokens)> reserve;  // room for that many tokens in all; false when there is none
  std::function<void(std::uint64_t sequence)> release;
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, BlockStore store) : limits_(limits), store_(std::move(store)) {}

  void add(std::uint64_t sequence, std::int64_t prompt_tokens);  // joins the queue
  void append(std::uint64_t sequence);                           // a token was chosen
  void remove(std::uint64_t sequence);                           // finished or cancelled; its blocks are released

  // Assumes that the plan is then computed. A plan without parts means that nothing is left to do.
  StepPlan plan();

  bool idle() const noexcept { return states_.empty(); }
  std::int64_t running() const noexcept { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t waiting() const noexcept { return static_cast<std::int64_t>(waiting_.size()); }

 private:
  struct State {
    std::int64_t tokens = 0;    // in the sequence
    std::int64_t computed = 0;  // of them, in the cache
    std::int64_t remaining() const noexcept { return tokens - computed; }
  };
  // Room for `tokens` of `sequence`, preempting later ones for it if need be. False when the sequence itself had to give way.
  bool make_room(std::uint64_t sequence, std::int64_t tokens, StepPlan& plan);
  void preempt_last(StepPlan& plan);
  void plan_decodes(StepPlan& plan);
  void plan_prefills(StepPlan& plan);
  void admit();
  void compute(StepPlan& plan, std::uint64_t sequence, std::int64_t count);

  SchedulerLimits limits_;
  BlockStore store_;
  std::unordered_map<std::uint64_t, State> states_;
  std::deque<std::uint64_t> waiting_;
  std::vector<std::uint64_t> running_;  // in the order of admission
};

}  // namespace engine
