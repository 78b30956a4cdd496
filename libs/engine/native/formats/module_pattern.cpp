#include "formats/module_pattern.h"

#include <algorithm>
#include <optional>
#include <string>

#include "core/error.h"

namespace engine {
namespace {

constexpr std::size_t kMostSteps = 4096;  // of a compiled pattern
constexpr int kDeepestGroup = 32;
constexpr std::int64_t kMostRepeats = 1000;

using Bytes = std::bitset<256>;

Bytes bytes_of(bool (*holds)(unsigned char)) {
  Bytes set;
  for (int c = 0; c < 256; ++c) set[static_cast<std::size_t>(c)] = holds(static_cast<unsigned char>(c));
  return set;
}
bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }
bool is_letter(unsigned char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_word(unsigned char c) { return is_digit(c) || is_letter(c) || c == '_'; }
bool is_space(unsigned char c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31); }

// \d and its like; nullopt for another letter.
std::optional<Bytes> class_of(char letter) {
  switch (letter) {
    case 'd': return bytes_of(is_digit);
    case 'D': return ~bytes_of(is_digit);
    case 'w': return bytes_of(is_word);
    case 'W': return ~bytes_of(is_word);
    case 's': return bytes_of(is_space);
    case 'S': return ~bytes_of(is_space);
    default: return std::nullopt;
  }
}

Bytes only(unsigned char c) {
  Bytes set;
  set.set(c);
  return set;
}

}  // namespace

// Recursive descent over the key; what it emits is run by ModulePattern::names.
class PatternCompiler {
 public:
  PatternCompiler(std::string_view key, ModulePattern& out) : key_(key), out_(out) {}

  // (.*\.)?({key})$
  void compile() {
    const std::int32_t split = emit({Op::split}), loop = emit({Op::split});
    set_byte(~only('\n'));
    emit({Op::jump, loop});
    at(loop).next = loop + 1;
    at(loop).other = here();
    set_byte(only('.'));
    at(split).next = split + 1;
    at(split).other = here();
    alternatives(0);
    require(Code::unsupported, at_ == key_.size(), "it has a ) without its (");
    emit({Op::end});
    emit({Op::accept});
  }

 private:
  using Op = ModulePattern::Op;
  using Step = ModulePattern::Step;

  bool more() const { return at_ < key_.size(); }
  bool take(char c) {
    if (!more() || key_[at_] != c) return false;
    ++at_;
    return true;
  }
  std::int32_t here() const { return static_cast<std::int32_t>(out_.steps_.size()); }
  Step& at(std::int32_t step) { return out_.steps_[static_cast<std::size_t>(step)]; }
  std::int32_t emit(Step step) {
    require(Code::unsupported, out_.steps_.size() < kMostSteps, "it is too large");
    out_.steps_.push_back(step);
    return here() - 1;
  }
  void set_byte(const Bytes& set) {
    out_.sets_.push_back(set);
    emit({Op::byte, static_cast<std::int32_t>(out_.sets_.size()) - 1});
  }

  // a|b|c: split, a, jump to the end, split, b, …
  void alternatives(int depth) {
    require(Code::unsupported, depth <= kDeepestGroup, "its groups are nested too deeply");
    std::vector<std::int32_t> jumps;
    for (;;) {
      const std::int32_t start = here();
      sequence(depth);
      if (!take('|')) break;
      insert_split(start);
      jumps.push_back(emit({Op::jump}));
      at(start).other = here();
    }
    for (const std::int32_t jump : jumps) at(jump).next = here();
  }

  void sequence(int depth) {
    while (more() && key_[at_] != '|' && key_[at_] != ')') {
      const std::int32_t start = here();
      const bool repeatable = atom(depth);
      if (more() && (key_[at_] == '*' || key_[at_] == '+' || key_[at_] == '?' || starts_count())) {
        require(Code::unsupported, repeatable, "it repeats nothing");
        repeat(start);
        require(Code::unsupported, !more() || (key_[at_] != '*' && key_[at_] != '+' && key_[at_] != '?' && !starts_count()), "it repeats a repetition");
      }
    }
  }

  // One character, class, group or assertion; false for the last, which cannot be repeated.
  bool atom(int depth) {
    const char c = key_[at_++];
    switch (c) {
      case '.': set_byte(~only('\n')); return true;
      case '^': emit({Op::begin}); return false;
      case '$': emit({Op::end}); return false;
      case '[': set_byte(char_class()); return true;
      case '(': group(depth); return true;
      case '\\': return escape();
      case '*': case '+': case '?': fail(Code::unsupported, "it repeats nothing");
      default: set_byte(only(static_cast<unsigned char>(c))); return true;
    }
  }

  void group(int depth) {
    if (take('?')) {
      if (take('P')) {
        require(Code::unsupported, take('<'), "it has a reference to a group");
        const std::size_t start = at_;
        while (more() && is_word(static_cast<unsigned char>(key_[at_]))) ++at_;
        require(Code::unsupported, at_ > start && !is_digit(static_cast<unsigned char>(key_[start])) && take('>'), "it has a group with a malformed name");
      } else {
        require(Code::unsupported, take(':'), "it has look-around, flags or a comment");
      }
    }
    alternatives(depth + 1);
    require(Code::unsupported, take(')'), "it has a ( without its )");
  }

  // After a backslash, outside a class.
  bool escape() {
    require(Code::unsupported, more(), "it ends in a backslash");
    const char c = key_[at_++];
    if (c == 'A') return emit({Op::begin}), false;
    if (c == 'Z') return emit({Op::end}), false;
    if (const auto set = class_of(c)) return set_byte(*set), true;
    set_byte(only(escaped(c)));
    return true;
  }
  static unsigned char escaped(char c) {
    switch (c) {
      case 'n': return '\n';
      case 't': return '\t';
      case 'r': return '\r';
      case 'f': return '\f';
      case 'v': return '\v';
      default: break;
    }
    require(Code::unsupported, !is_letter(static_cast<unsigned char>(c)) && !is_digit(static_cast<unsigned char>(c)), "it has the escape \\", std::string(1, c));
    return static_cast<unsigned char>(c);
  }

  // After [: the first ] is itself a member.
  Bytes char_class() {
    Bytes set;
    const bool negated = take('^');
    for (bool first = true;; first = false) {
      require(Code::unsupported, more(), "it has a [ without its ]");
      if (!first && take(']')) break;
      const std::optional<unsigned char> low = member(set);
      if (at_ + 1 >= key_.size() || key_[at_] != '-' || key_[at_ + 1] == ']') continue;
      ++at_;
      const std::optional<unsigned char> high = member(set);
      require(Code::unsupported, low && high && *low <= *high, "it has a class with a range that is none");
      for (int c = *low; c <= *high; ++c) set.set(static_cast<std::size_t>(c));
    }
    return negated ? ~set : set;
  }
  // Adds one member to a class; the character, when it is one and not a class of its own.
  std::optional<unsigned char> member(Bytes& set) {
    const char c = key_[at_++];
    if (c != '\\') return set.set(static_cast<unsigned char>(c)), static_cast<unsigned char>(c);
    require(Code::unsupported, more(), "it ends in a backslash");
    const char letter = key_[at_++];
    if (const auto inner = class_of(letter)) return set |= *inner, std::nullopt;
    const unsigned char value = escaped(letter);
    return set.set(value), value;
  }

  // Whether {m}, {m,}, {,n} or {m,n} comes; any other { is a character.
  bool starts_count() const {
    std::size_t i = at_;
    if (i >= key_.size() || key_[i++] != '{') return false;
    const auto digits = [&] {
      const std::size_t start = i;
      while (i < key_.size() && is_digit(static_cast<unsigned char>(key_[i]))) ++i;
      return i > start;
    };
    bool any = digits();
    if (i < key_.size() && key_[i] == ',') {
      ++i;
      digits();
      any = true;
    }
    return any && i < key_.size() && key_[i] == '}';
  }
  std::int64_t count(std::int64_t otherwise) {
    if (!more() || !is_digit(static_cast<unsigned char>(key_[at_]))) return otherwise;
    std::int64_t value = 0;
    for (; more() && is_digit(static_cast<unsigned char>(key_[at_])); ++at_) value = std::min(value * 10 + (key_[at_] - '0'), kMostRepeats + 1);
    require(Code::unsupported, value <= kMostRepeats, "it repeats more than ", kMostRepeats, " times");
    return value;
  }

  // What was emitted from `start` on, as often as the quantifier says. Greedy and lazy name the same paths.
  void repeat(std::int32_t start) {
    std::int64_t least = 0, most = -1;  // −1: any number
    if (take('*')) {
    } else if (take('+')) {
      least = 1;
    } else if (take('?')) {
      most = 1;
    } else {
      take('{');
      least = count(0);
      most = take(',') ? count(-1) : least;
      take('}');
      require(Code::unsupported, most < 0 || least <= most, "it repeats at least ", least, " and at most ", most, " times");
    }
    take('?');
    const std::vector<Step> body(out_.steps_.begin() + start, out_.steps_.end());
    out_.steps_.resize(static_cast<std::size_t>(start));
    for (std::int64_t i = 0; i < least; ++i) copy(body, start);
    if (most < 0) {
      const std::int32_t loop = emit({Op::split, here() + 1});
      copy(body, start);
      emit({Op::jump, loop});
      at(loop).other = here();
    }
    std::vector<std::int32_t> exits;
    for (std::int64_t i = least; i < most; ++i) {
      exits.push_back(emit({Op::split, here() + 1}));
      copy(body, start);
    }
    for (const std::int32_t exit : exits) at(exit).other = here();
  }
  // Steps that were at `from`, here.
  void copy(const std::vector<Step>& body, std::int32_t from) {
    const std::int32_t moved = here() - from;
    for (Step step : body) {
      if (step.op == Op::split || step.op == Op::jump) step.next += moved;
      if (step.op == Op::split) step.other += moved;
      emit(step);
    }
  }
  // A split before the steps from `start` on, which move by one.
  void insert_split(std::int32_t start) {
    const std::vector<Step> body(out_.steps_.begin() + start, out_.steps_.end());
    out_.steps_.resize(static_cast<std::size_t>(start));
    emit({Op::split, start + 1});
    copy(body, start);
  }

  std::string_view key_;
  ModulePattern& out_;
  std::size_t at_ = 0;
};

ModulePattern::ModulePattern(std::string_view key) { PatternCompiler(key, *this).compile(); }

// All places where the pattern may be, byte by byte of the path.
bool ModulePattern::names(std::string_view path) const {
  std::vector<std::int32_t> now, then, pending;
  std::vector<std::size_t> reached(steps_.size(), path.size() + 1);  // the position at which a step was last reached
  bool accepted = false;
  const auto reach = [&](std::int32_t first, std::size_t position, std::vector<std::int32_t>& list) {
    pending.assign(1, first);
    while (!pending.empty()) {
      const std::int32_t i = pending.back();
      pending.pop_back();
      if (reached[static_cast<std::size_t>(i)] == position) continue;
      reached[static_cast<std::size_t>(i)] = position;
      const Step& step = steps_[static_cast<std::size_t>(i)];
      switch (step.op) {
        case Op::byte: list.push_back(i); break;
        case Op::split: pending.push_back(step.other); pending.push_back(step.next); break;
        case Op::jump: pending.push_back(step.next); break;
        case Op::begin:
          if (position == 0) pending.push_back(i + 1);
          break;
        case Op::end:
          if (position == path.size()) pending.push_back(i + 1);
          break;
        case Op::accept: accepted = true; break;
      }
    }
  };
  reach(0, 0, now);
  for (std::size_t position = 0; position < path.size() && !accepted; ++position) {
    then.clear();
    for (const std::int32_t i : now)
      if (sets_[static_cast<std::size_t>(steps_[static_cast<std::size_t>(i)].next)][static_cast<unsigned char>(path[position])]) reach(i + 1, position + 1, then);
    std::swap(now, then);
  }
  return accepted;
}

}  // namespace engine
