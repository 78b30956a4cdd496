#include "infer/constraint.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"

namespace engine {

void check_automaton(const ByteAutomaton& a) {
  require(a.states() >= 1 && a.states() <= ByteAutomaton::kMaxStates, "the automaton has ", a.states(), " states; use 1 to ", ByteAutomaton::kMaxStates);
  require(a.class_of.size() == 256, "the automaton's classes are given for ", a.class_of.size(), " bytes, not for 256");
  require(a.classes >= 1 && a.classes <= 256, "the automaton has ", a.classes, " classes of bytes; use 1 to 256");
  require(std::ranges::all_of(a.class_of, [&](std::uint8_t c) { return c < a.classes; }), "a byte's class is not below ", a.classes);
  require(static_cast<std::int64_t>(a.next.size()) == a.states() * a.classes, "the automaton's table has ", a.next.size(), " entries, not ", a.states() * a.classes);
  const bool stack = !a.outcomes.empty();
  const auto is_state = [&](std::int32_t s) { return s >= 0 && s < a.states(); };
  const auto is_next = [&](std::int32_t s) { return s == ByteAutomaton::kDead || is_state(s) || (stack && is_state(ByteAutomaton::opening(s))); };
  require(std::ranges::all_of(a.next, is_next), "the automaton's table names a state that is not there");
  const auto sized = [&](const std::vector<std::int32_t>& list) { return std::ssize(list) == (stack ? a.states() : 0); };
  require(sized(a.outcomes) && sized(a.heights) && (stack || a.returns.empty()), "the automaton's stack is not given for each of its ", a.states(), " states");
  require(std::ranges::all_of(a.outcomes, [](std::int32_t outcome) { return outcome >= ByteAutomaton::kNone; }) &&
              std::ranges::all_of(a.heights, [](std::int32_t height) { return height >= 0 && height <= ByteAutomaton::kMaxDepth; }),
          "the automaton has an outcome or a height out of range");
  require(std::ranges::all_of(a.returns, [&](const ByteAutomaton::Return& r) { return is_state(r.frame) && is_state(r.next); }) && std::ranges::is_sorted(a.returns),
          "the automaton's returns are not sorted, or name a state that is not there");
}

namespace {

// The open brackets of one output.
struct OwnFrames {
  std::vector<std::int32_t>& frames;
  std::int64_t depth() const { return std::ssize(frames); }
  void push(std::int32_t state) { frames.push_back(state); }
  std::int32_t pop() {
    const std::int32_t state = frames.back();
    frames.pop_back();
    return state;
  }
};

// The open brackets at every node of a walk: lists that share their beginnings.
struct SharedFrames {
  struct Frame {
    std::int32_t state, below;
    std::int64_t depth;
  };
  std::vector<Frame> all;  // [0] is the empty list
  std::int32_t top = 0;
  std::int64_t depth() const { return all[static_cast<std::size_t>(top)].depth; }
  void push(std::int32_t state) {
    all.push_back({state, top, depth() + 1});
    top = static_cast<std::int32_t>(all.size()) - 1;
  }
  std::int32_t pop() {
    const Frame& frame = all[static_cast<std::size_t>(top)];
    top = frame.below;
    return frame.state;
  }
};

}  // namespace

// The state after the byte, or kDead: nothing fits, or what would have to be open at once is more than kMaxDepth.
template <class Stack>
std::int32_t Constraint::step(std::int32_t state, std::uint8_t byte, Stack& stack) const {
  std::int32_t next = automaton_.step(state, byte);
  if (next == ByteAutomaton::kDead || automaton_.outcomes.empty()) return next;
  if (next < 0) {
    next = ByteAutomaton::opening(next);
    stack.push(state);
  }
  if (stack.depth() + automaton_.heights[static_cast<std::size_t>(next)] > ByteAutomaton::kMaxDepth) return ByteAutomaton::kDead;
  const std::int32_t outcome = automaton_.outcomes[static_cast<std::size_t>(next)];
  if (outcome == ByteAutomaton::kNone) return next;
  if (stack.depth() == 0) return ByteAutomaton::kDead;
  const ByteAutomaton::Return wanted{stack.pop(), outcome, 0};
  const auto found = std::ranges::lower_bound(automaton_.returns, wanted);
  return found == automaton_.returns.end() || found->frame != wanted.frame || found->outcome != outcome ? ByteAutomaton::kDead : found->next;
}

Constraint::Constraint(std::shared_ptr<const TokenTrie> vocabulary, ByteAutomaton automaton) : vocabulary_(std::move(vocabulary)), automaton_(std::move(automaton)) {
  check_automaton(automaton_);
}

bool Constraint::complete(const ConstraintPlace& place) const {
  const auto row = automaton_.next.begin() + place.state * automaton_.classes;
  return accepting(place) && std::all_of(row, row + automaton_.classes, [](std::int32_t next) { return next == ByteAutomaton::kDead; });
}

std::optional<ConstraintPlace> Constraint::advance(ConstraintPlace place, std::uint32_t token) const {
  const auto bytes = vocabulary_->bytes_of(token);
  if (bytes.empty()) return std::nullopt;
  OwnFrames stack{place.frames};
  for (const std::uint8_t byte : bytes) {
    place.state = step(place.state, byte, stack);
    if (place.state == ByteAutomaton::kDead) return std::nullopt;
  }
  return place;
}

TokenMask Constraint::walk(const ConstraintPlace& place) const {
  TokenMask mask;
  mask.bits.resize(static_cast<std::size_t>(vocabulary_->tokens() + 63) / 64);
  SharedFrames stack{.all = {{0, 0, 0}}};
  for (const std::int32_t frame : place.frames) stack.push(frame);
  // States, and what is open, after the bytes down to a depth.
  std::vector<std::int32_t> path(vocabulary_->longest() + 1, ByteAutomaton::kDead), tops(path.size());
  path[0] = place.state;
  tops[0] = stack.top;
  const auto nodes = vocabulary_->nodes();
  const auto spellings = vocabulary_->spellings();
  for (std::uint32_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    stack.top = tops[node.depth];
    const std::int32_t next = step(path[node.depth], node.byte, stack);
    if (next == ByteAutomaton::kDead) {
      i = node.end;
      continue;
    }
    path[node.depth + 1] = next;
    tops[node.depth + 1] = stack.top;
    for (std::uint32_t s = node.first; s < node.last; ++s) {
      const std::uint32_t token = spellings[s];
      mask.bits[token >> 6] |= std::uint64_t{1} << (token & 63);
      ++mask.count;
    }
    ++i;
  }
  return mask;
}

std::shared_ptr<const TokenMask> Constraint::allowed(const ConstraintPlace& place) const {
  std::vector<std::int32_t> key = place.frames;
  key.push_back(place.state);
  const std::lock_guard lock(mutex_);
  if (const auto found = masks_.find(key); found != masks_.end()) return found->second;
  auto mask = std::make_shared<const TokenMask>(walk(place));
  const auto bytes = static_cast<std::int64_t>(mask->bits.size() * sizeof(std::uint64_t) + (ByteAutomaton::kMaxDepth + 1) * sizeof(std::int32_t));
  if (static_cast<std::int64_t>(masks_.size() + 1) * bytes > kMaxMaskBytes) masks_.clear();
  masks_.emplace(std::move(key), mask);
  return mask;
}

}  // namespace engine
