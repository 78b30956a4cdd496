#include "infer/scheduler.h"

#include <algorithm>

#include "core/error.h"

namespace engine {

void Scheduler::add(std::uint64_t sequence, std::int64_t prompt_tokens) {
  require(Code::internal, prompt_tokens > 0 && states_.emplace(sequence, State{prompt_tokens, 0}).second, "a sequence was scheduled twice, or empty");
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
  plan_decodes(plan);
  if (plan.preempted.empty()) admit();  // a cache that was just too small has no room for newcomers
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

void Scheduler::preempt_last(StepPlan& plan) {
  const std::uint64_t victim = running_.back();
  running_.pop_back();
  store_.release(victim);
  states_.at(victim).computed = 0;
  waiting_.push_front(victim);
  plan.preempted.push_back(victim);
}

bool Scheduler::make_room(std::uint64_t sequence, std::int64_t tokens, StepPlan& plan) {
  while (!store_.reserve(sequence, tokens)) {
    const bool itself = running_.back() == sequence;
    preempt_last(plan);
    if (itself) return false;
  }
  return true;
}

void Scheduler::plan_decodes(StepPlan& plan) {
  // Preemption takes from the back, so indices before it stay.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const std::uint64_t sequence = running_[i];
    const State& state = states_.at(sequence);
    if (state.remaining() != 1 || state.computed == 0) continue;
    if (make_room(sequence, state.tokens, plan)) compute(plan, sequence, 1);
  }
}

void Scheduler::admit() {
  while (!waiting_.empty() && running() < limits_.max_running) {
    const std::uint64_t sequence = waiting_.front();
    // The whole prompt must fit: half a prompt in a full cache would only wait there.
    if (!store_.reserve(sequence, states_.at(sequence).tokens)) return;
    waiting_.pop_front();
    running_.push_back(sequence);
  }
}

void Scheduler::plan_prefills(StepPlan& plan) {
  std::vector<std::uint64_t> reading;
  for (const std::uint64_t sequence : running_) {
    const bool planned = std::ranges::find(plan.parts, sequence, &StepPart::sequence) != plan.parts.end();
    if (!planned && states_.at(sequence).remaining() > 0) reading.push_back(sequence);
  }
  std::int64_t budget = limits_.prefill_tokens;
  for (std::size_t i = 0; i < reading.size() && budget > 0; ++i) {
    // The oldest may not take all of a step from the next one: half is kept for it, unless it needs less.
    const std::int64_t others = i + 1 < reading.size() ? std::min(budget / 2, states_.at(reading[i + 1]).remaining()) : 0;
    const std::int64_t count = std::min(states_.at(reading[i]).remaining(), std::max<std::int64_t>(budget - others, 1));
    compute(plan, reading[i], count);
    budget -= count;
  }
}

}  // namespace engine
