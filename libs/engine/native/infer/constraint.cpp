#include "infer/constraint.h"

#include <algorithm>

#include "core/error.h"

namespace engine {

void check_automaton(const ByteAutomaton& a) {
  require(a.states() >= 1 && a.states() <= ByteAutomaton::kMaxStates, "the automaton has ", a.states(), " states; use 1 to ", ByteAutomaton::kMaxStates);
  require(a.class_of.size() == 256, "the automaton's classes are given for ", a.class_of.size(), " bytes, not for 256");
  require(a.classes >= 1 && a.classes <= 256, "the automaton has ", a.classes, " classes of bytes; use 1 to 256");
  require(std::ranges::all_of(a.class_of, [&](std::uint8_t c) { return c < a.classes; }), "a byte's class is not below ", a.classes);
  require(static_cast<std::int64_t>(a.next.size()) == a.states() * a.classes, "the automaton's table has ", a.next.size(), " entries, not ", a.states() * a.classes);
  require(std::ranges::all_of(a.next, [&](std::int32_t s) { return s >= ByteAutomaton::kDead && s < a.states(); }), "the automaton's table names a state that is not there");
}

Constraint::Constraint(std::shared_ptr<const TokenTrie> vocabulary, ByteAutomaton automaton) : vocabulary_(std::move(vocabulary)), automaton_(std::move(automaton)) {
  check_automaton(automaton_);
}

bool Constraint::complete(std::int32_t state) const {
  const auto row = automaton_.next.begin() + state * automaton_.classes;
  return accepting(state) && std::all_of(row, row + automaton_.classes, [](std::int32_t next) { return next == ByteAutomaton::kDead; });
}

std::int32_t Constraint::advance(std::int32_t state, std::uint32_t token) const {
  const auto bytes = vocabulary_->bytes_of(token);
  if (bytes.empty()) return ByteAutomaton::kDead;
  for (const std::uint8_t byte : bytes) {
    state = automaton_.step(state, byte);
    if (state == ByteAutomaton::kDead) break;
  }
  return state;
}

TokenMask Constraint::walk(std::int32_t state) const {
  TokenMask mask;
  mask.bits.resize(static_cast<std::size_t>(vocabulary_->tokens() + 63) / 64);
  std::vector<std::int32_t> path(vocabulary_->longest() + 1, ByteAutomaton::kDead);  // states after the bytes down to a depth
  path[0] = state;
  const auto nodes = vocabulary_->nodes();
  const auto spellings = vocabulary_->spellings();
  for (std::uint32_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const std::int32_t next = automaton_.step(path[node.depth], node.byte);
    if (next == ByteAutomaton::kDead) {
      i = node.end;
      continue;
    }
    path[node.depth + 1] = next;
    for (std::uint32_t s = node.first; s < node.last; ++s) {
      const std::uint32_t token = spellings[s];
      mask.bits[token >> 6] |= std::uint64_t{1} << (token & 63);
      ++mask.count;
    }
    ++i;
  }
  return mask;
}

std::shared_ptr<const TokenMask> Constraint::allowed(std::int32_t state) const {
  const std::lock_guard lock(mutex_);
  if (const auto found = masks_.find(state); found != masks_.end()) return found->second;
  auto mask = std::make_shared<const TokenMask>(walk(state));
  const auto bytes = static_cast<std::int64_t>(mask->bits.size() * sizeof(std::uint64_t));
  if (static_cast<std::int64_t>(masks_.size() + 1) * bytes > kMaxMaskBytes) masks_.clear();
  masks_.emplace(state, mask);
  return mask;
}

}  // namespace engine
