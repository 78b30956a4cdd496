// scheduler.h: which tokens of which sequences the next step computes. Knows counts and blocks, nothing of models or text.
//   Every running sequence that has read its prompt advances by one token; waiting prompts are read in chunks that share what is left of the
//   step's token budget, at least two at a time. The budget is smaller while others wait for their next token, so that reading never stalls them; it grows,
//   within bounds, with what is left to read, because larger steps read faster, and shrinks with it again.
//   Sequences are admitted by priority, oldest first; whoever waits rises by one priority every kAgeSteps steps, so that none waits for ever. When
//   there is no room, the sequence of the lowest priority, of these the one admitted last, gives its blocks back and waits: it is read again when
//   there is room (recomputed, not swapped, but for what the cache still remembers). A waiting sequence takes the place of one of lower priority.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

namespace engine {

struct SchedulerLimits {
  std::int64_t max_running = 64;
  std::int64_t prefill_tokens = 256;  // prompt tokens of one step
  // All tokens of a step in which other sequences advance, theirs included, so that such steps have one size: products take rows in tiles. A quarter of them
  // are a prompt's however many advance.
  std::int64_t tokens_beside = 64;
  // Times tokens_beside that such a step may have at most: how much prompts may slow the others' tokens. It is the smallest power of two with which all that
  // waits to be read in the cache is read within kReadWithinSteps steps. Only prompts at least as urgent as every sequence that advances count.
  std::int64_t most_growth = 1;
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
  // Takes blocks that already hold the sequence's beginning; returns how many of its tokens they hold, fewer than all. Null: there are none.
  std::function<std::int64_t(std::uint64_t sequence)> reuse = nullptr;
};

enum class Priority : std::uint8_t { interactive, batch, evaluation };

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, BlockStore store) : limits_(limits), store_(std::move(store)) {}

  static constexpr std::int64_t kAgeSteps = 256;
  static constexpr std::int64_t kReadWithinSteps = 16;

  void add(std::uint64_t sequence, std::int64_t prompt_tokens, Priority priority = Priority::interactive);  // joins the queue
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
    std::int64_t priority = 0;
    std::uint64_t arrival = 0;
    std::int64_t waited = 0;    // steps in the queue, since it joined it last
    std::int64_t remaining() const noexcept { return tokens - computed; }
    std::int64_t aged() const noexcept { return waited / kAgeSteps >= priority ? 0 : priority - waited / kAgeSteps; }
  };
  // Room for `tokens` of `sequence`, preempting later ones for it if need be. False when the sequence itself had to give way.
  bool make_room(std::uint64_t sequence, std::int64_t tokens, StepPlan& plan);
  std::uint64_t least_urgent() const;  // of those that run
  std::uint64_t next_waiting() const;
  void preempt(std::uint64_t victim, StepPlan& plan);
  bool try_admit(std::uint64_t sequence);
  void admit_urgent(StepPlan& plan);
  void plan_decodes(StepPlan& plan);
  void plan_prefills(StepPlan& plan);
  void admit();
  std::int64_t tokens_beside(const StepPlan& advancing, const std::vector<std::uint64_t>& reading) const;
  void compute(StepPlan& plan, std::uint64_t sequence, std::int64_t count);

  SchedulerLimits limits_;
  BlockStore store_;
  std::unordered_map<std::uint64_t, State> states_;
  std::uint64_t arrivals_ = 0;
  std::vector<std::uint64_t> waiting_;  // in no order
  std::vector<std::uint64_t> running_;  // in the order of admission
};

}  // namespace engine
