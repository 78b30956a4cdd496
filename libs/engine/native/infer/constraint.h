// constraint.h: what an output must look like, as a deterministic automaton over bytes, and which tokens may come next in each of its states.
//   Who compiles regular expressions and schemas into automata is outside the engine; here is only what a step needs. Where texts nest, as JSON does,
//   the automaton has a stack: an opening bracket puts the state that it was read in on it and goes on in the bracket's own states, and a closing
//   one takes it off again. The set of allowed tokens of a place is found once, when the place is first met, by walking the vocabulary's trie beside
//   the automaton, and kept.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "infer/token_trie.h"

namespace engine {

struct ByteAutomaton {
  static constexpr std::int32_t kDead = -1, kNone = -1;
  static constexpr std::int64_t kMaxStates = 1 << 20;
  static constexpr std::int64_t kMaxDepth = 128;  // brackets that may be open at once

  // What is taken off the stack, with how the bracket's content ended, gives the state to go on in.
  struct Return {
    std::int32_t frame = 0, outcome = 0, next = 0;
    auto operator<=>(const Return&) const = default;
  };

  std::vector<std::uint8_t> class_of;  // [256] byte → class
  std::int64_t classes = 0;
  std::vector<std::int32_t> next;      // [states, classes]: the state after a byte of that class; kDead; or opening(s): s after putting this state on the stack
  std::vector<std::uint8_t> accepting; // [states]: 1 where the output may end
  // Of an automaton with a stack; else empty.
  std::vector<std::int32_t> outcomes;  // [states]: how the innermost bracket's content ended, where it ends with arriving here; else kNone
  std::vector<Return> returns;         // sorted
  std::vector<std::int32_t> heights;   // [states]: how many brackets at least must still be open at once before the innermost can end

  static constexpr std::int32_t opening(std::int32_t state) { return -2 - state; }
  std::int64_t states() const noexcept { return static_cast<std::int64_t>(accepting.size()); }
  std::int32_t step(std::int32_t state, std::uint8_t byte) const { return next[static_cast<std::size_t>(state * classes + class_of[byte])]; }
};

// Where in an automaton an output is: a state, and the states of the brackets that are open, the innermost last.
struct ConstraintPlace {
  std::int32_t state = 0;
  std::vector<std::int32_t> frames{};
};

// Throws invalid for a table that is not one: wrong sizes, a class, state or outcome out of range, no state.
void check_automaton(const ByteAutomaton& automaton);

// One bit for each token of the vocabulary.
struct TokenMask {
  std::vector<std::uint64_t> bits;
  std::int64_t count = 0;  // bits that are set
  bool has(std::uint32_t token) const { return (token >> 6) < bits.size() && (bits[token >> 6] >> (token & 63) & 1) != 0; }
};

// Shared by all requests that ask for the same thing; an output begins at ConstraintPlace{}.
class Constraint {
 public:
  // Throws invalid as check_automaton does.
  Constraint(std::shared_ptr<const TokenTrie> vocabulary, ByteAutomaton automaton);

  // From any thread. A mask stays valid for as long as its holder keeps it.
  std::shared_ptr<const TokenMask> allowed(const ConstraintPlace& place) const;
  bool accepting(const ConstraintPlace& place) const { return place.frames.empty() && automaton_.accepting[static_cast<std::size_t>(place.state)] != 0; }
  // Accepting, and no byte may follow.
  bool complete(const ConstraintPlace& place) const;
  // The place after a token's bytes; none when they do not fit or the token has none.
  std::optional<ConstraintPlace> advance(ConstraintPlace place, std::uint32_t token) const;

  static constexpr std::int64_t kMaxMaskBytes = 16 << 20;  // kept; a constraint that needs more finds some of them again

 private:
  TokenMask walk(const ConstraintPlace& place) const;
  template <class Stack>
  std::int32_t step(std::int32_t state, std::uint8_t byte, Stack& stack) const;

  std::shared_ptr<const TokenTrie> vocabulary_;
  ByteAutomaton automaton_;
  mutable std::mutex mutex_;
  mutable std::map<std::vector<std::int32_t>, std::shared_ptr<const TokenMask>> masks_;  // by the frames and the state
};

}  // namespace engine
