// module_pattern.h: the keys of PEFT's rank_pattern and alpha_pattern: Python regular expressions that name modules by the ends of their paths.
//   A key names a path when Python's re.match(rf"(.*\.)?({key})$", path) matches.
//   Of Python's syntax: characters, ., \d \D \w \W \s \S, escaped punctuation, [classes], groups (plain, non-capturing, named), |, * + ? {m} {m,} {m,n}
//   and their lazy forms, ^ $ \A \Z. Look-around, references and flags are refused. Characters are bytes; letters, digits and spaces are ASCII's.
//   Matching takes at most |path| · |pattern| steps, whatever the pattern.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <vector>

namespace engine {

class ModulePattern {
 public:
  // Throws unsupported with the reason: syntax that Python refuses or this class does not have, or too large a pattern.
  explicit ModulePattern(std::string_view key);

  bool names(std::string_view path) const;

 private:
  friend class PatternCompiler;
  enum class Op : std::uint8_t { byte, split, jump, begin, end, accept };
  struct Step {
    Op op;
    std::int32_t next = 0, other = 0;  // of a split or a jump, absolute; of a byte, `next` is its set
  };

  std::vector<Step> steps_;
  std::vector<std::bitset<256>> sets_;
};

}  // namespace engine
