// constraint.h: what an output must look like, as a deterministic automaton over bytes, and which tokens may come next in each of its states.
//   Who compiles regular expressions and schemas into automata is outside the engine; here is only what a step needs. The set of allowed tokens of
//   a state is found once, when the state is first met, by walking the vocabulary's trie beside the automaton, and kept.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "infer/token_trie.h"

namespace engine {

struct ByteAutomaton {
  static constexpr std::int32_t kDead = -1;
  static constexpr std::int64_t kMaxStates = 1 << 20;

  std::vector<std::uint8_t> class_of;  // [256] byte → class
  std::int64_t classes = 0;
  std::vector<std::int32_t> next;      // [states, classes]: the state after a byte of that class, or kDead
  std::vector<std::uint8_t> accepting; // [states]: 1 where the output may end

  std::int64_t states() const noexcept { return static_cast<std::int64_t>(accepting.size()); }
  std::int32_t step(std::int32_t state, std::uint8_t byte) const { return next[static_cast<std::size_t>(state * classes + class_of[byte])]; }
};

// Throws invalid for a table that is not one: wrong sizes, a class or state out of range, no state.
void check_automaton(const ByteAutomaton& automaton);

// One bit for each token of the vocabulary.
struct TokenMask {
  std::vector<std::uint64_t> bits;
  std::int64_t count = 0;  // bits that are set
  bool has(std::uint32_t token) const { return (token >> 6) < bits.size() && (bits[token >> 6] >> (token & 63) & 1) != 0; }
};

// Shared by all requests that ask for the same thing; state 0 is the start.
class Constraint {
 public:
  // Throws invalid as check_automaton does.
  Constraint(std::shared_ptr<const TokenTrie> vocabulary, ByteAutomaton automaton);

  // From any thread. A mask stays valid for as long as its holder keeps it.
  std::shared_ptr<const TokenMask> allowed(std::int32_t state) const;
  bool accepting(std::int32_t state) const { return automaton_.accepting[static_cast<std::size_t>(state)] != 0; }
  // Accepting, and no byte may follow.
  bool complete(std::int32_t state) const;
  // The state after a token's bytes; kDead when they do not fit or the token has none.
  std::int32_t advance(std::int32_t state, std::uint32_t token) const;

  static constexpr std::int64_t kMaxMaskBytes = 16 << 20;  // kept; a constraint that needs more finds some of them again

 private:
  TokenMask walk(std::int32_t state) const;

  std::shared_ptr<const TokenTrie> vocabulary_;
  ByteAutomaton automaton_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::int32_t, std::shared_ptr<const TokenMask>> masks_;
};

}  // namespace engine
