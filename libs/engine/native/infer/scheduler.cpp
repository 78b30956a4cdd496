#include "infer/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"

namespace engine {

void Scheduler::add(std::uint64_t sequence, std::int64_t prompt_tokens, Priority priority) {
  State state{prompt_tokens, 0};
  state.priority = static_cast<std::int64_t>(priority);
  state.arrival = arrivals_++;
  require(Code::internal, prompt_tokens > 0 && states_.emplace(sequence, state).second, "a sequence was scheduled twice, or empty");
  waiting_.push_back(sequence);
}

void Scheduler::append(std::uint64_t sequence) { ++states_.at(sequence).tokens; }

void Scheduler::remove(std::uint64_t sequence) {
  if (states_.erase(sequence) == 0) return;
  store_.release(sequence);
  std::erase(waiting_, sequence);
  std::erase(running_, sequence);
}

StepPlan Scheduler::plan() {
  StepPlan plan;
  for (const std::uint64_t sequence : waiting_) ++states_.at(sequence).waited;
  admit_urgent(plan);
  const std::size_t gave_way = plan.preempted.size();
  plan_decodes(plan);
  if (plan.preempted.size() == gave_way) admit();  // a cache that was just too small has no room for newcomers
  plan_prefills(plan);
  // One token more than the cache holds can never be computed; submit() refuses such sequences, so something always runs.
  require(Code::internal, !plan.parts.empty() || idle(), "the scheduler found nothing to do for ", states_.size(), " sequences");
  return plan;
}

void Scheduler::compute(StepPlan& plan, std::uint64_t sequence, std::int64_t count) {
  State& state = states_.at(sequence);
  plan.parts.push_back({sequence, state.computed, count, count == state.remaining()});
  state.computed += count;
}

std::uint64_t Scheduler::least_urgent() const {
  // The last of the largest: of equals the one admitted last.
  std::uint64_t worst = running_.front();
  for (const std::uint64_t sequence : running_)
    if (states_.at(sequence).priority >= states_.at(worst).priority) worst = sequence;
  return worst;
}

std::uint64_t Scheduler::next_waiting() const {
  const auto rank = [this](std::uint64_t sequence) {
    const State& state = states_.at(sequence);
    return std::pair(state.aged(), state.arrival);
  };
  return *std::ranges::min_element(waiting_, std::less<>{}, rank);
}

void Scheduler::preempt(std::uint64_t victim, StepPlan& plan) {
  std::erase(running_, victim);
  store_.release(victim);
  State& state = states_.at(victim);
  state.computed = 0;
  state.waited = 0;
  waiting_.push_back(victim);
  plan.preempted.push_back(victim);
}

bool Scheduler::make_room(std::uint64_t sequence, std::int64_t tokens, StepPlan& plan) {
  while (!store_.reserve(sequence, tokens)) {
    const std::uint64_t victim = least_urgent();
    preempt(victim, plan);
    if (victim == sequence) return false;
  }
  return true;
}

void Scheduler::plan_decodes(StepPlan& plan) {
  // The most urgent first: who has to give way then has no part of the step yet.
  std::vector<std::uint64_t> order = running_;
  std::ranges::stable_sort(order, std::less<>{}, [this](std::uint64_t sequence) { return states_.at(sequence).priority; });
  for (const std::uint64_t sequence : order) {
    const State& state = states_.at(sequence);
    if (state.remaining() != 1 || state.computed == 0 || std::ranges::find(running_, sequence) == running_.end()) continue;
    if (make_room(sequence, state.tokens, plan)) compute(plan, sequence, 1);
  }
}

bool Scheduler::try_admit(std::uint64_t sequence) {
  if (running() >= limits_.max_running) return false;
  State& state = states_.at(sequence);
  if (store_.reuse) state.computed = store_.reuse(sequence);
  // The whole prompt must fit: half a prompt in a full cache would only wait there.
  if (!store_.reserve(sequence, state.tokens)) {
    store_.release(sequence);
    state.computed = 0;
    return false;
  }
  state.priority = state.aged();  // what it rose by it keeps, or the next urgent one would take its place at once
  std::erase(waiting_, sequence);
  running_.push_back(sequence);
  return true;
}

void Scheduler::admit_urgent(StepPlan& plan) {
  while (!waiting_.empty() && !running_.empty()) {
    const std::uint64_t sequence = next_waiting(), victim = least_urgent();
    // Who has only waited long takes no running one's place, or the two would take turns.
    if (states_.at(victim).priority <= states_.at(sequence).priority) return;
    if (!try_admit(sequence)) preempt(victim, plan);
  }
}

void Scheduler::admit() {
  while (!waiting_.empty())
    if (!try_admit(next_waiting())) return;
}

std::int64_t Scheduler::tokens_beside(const StepPlan& advancing, const std::vector<std::uint64_t>& reading) const {
  std::int64_t urgent = std::numeric_limits<std::int64_t>::max(), unread = 0;
  for (const StepPart& part : advancing.parts) urgent = std::min(urgent, states_.at(part.sequence).priority);
  for (const std::uint64_t sequence : reading)
    if (const State& state = states_.at(sequence); state.priority <= urgent) unread += state.remaining();
  std::int64_t growth = 1;
  while (2 * growth <= limits_.most_growth && unread > kReadWithinSteps * growth * limits_.tokens_beside) growth *= 2;
  return growth * limits_.tokens_beside;
}

void Scheduler::plan_prefills(StepPlan& plan) {
  std::vector<std::uint64_t> reading;
  for (const std::uint64_t sequence : running_) {
    const bool planned = std::ranges::find(plan.parts, sequence, &StepPart::sequence) != plan.parts.end();
    if (!planned && states_.at(sequence).remaining() > 0) reading.push_back(sequence);
  }
  const auto advancing = static_cast<std::int64_t>(plan.parts.size());
  std::int64_t budget = limits_.prefill_tokens;
  if (advancing > 0) {
    const std::int64_t beside = tokens_beside(plan, reading);
    budget = std::min(budget, std::max({beside - advancing, beside / 4, std::int64_t{1}}));
  }
  for (std::size_t i = 0; i < reading.size() && budget > 0; ++i) {
    // The oldest may not take all of a step from the next one: half is kept for it, unless it needs less.
    const std::int64_t others = i + 1 < reading.size() ? std::min(budget / 2, states_.at(reading[i + 1]).remaining()) : 0;
    const std::int64_t count = std::min(states_.at(reading[i]).remaining(), std::max<std::int64_t>(budget - others, 1));
    compute(plan, reading[i], count);
    budget -= count;
  }
}

}  // namespace engine
