// error.h: the one exception the engine throws, with a code a caller can act on.
//   Messages say what was seen and what to do. They never hold text or token ids of a training row or prompt.
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace engine {

enum class Code : std::uint8_t {
  invalid,      // the caller's argument breaks the contract
  unsupported,  // well formed, but this engine does not do it
  io,           // the operating system refused: missing file, no space, no permission
  corrupt,      // a file contradicts its own format
  oom,          // memory ran out; nothing was changed
  cancelled,    // the caller asked to stop
  device_lost,  // the device is unusable until the process restarts
  internal,     // a broken invariant of the engine itself
};

// The lower-case name that crosses to TypeScript: "invalid", "device_lost", …
constexpr std::string_view code_name(Code code) noexcept {
  switch (code) {
    case Code::invalid: return "invalid";
    case Code::unsupported: return "unsupported";
    case Code::io: return "io";
    case Code::corrupt: return "corrupt";
    case Code::oom: return "oom";
    case Code::cancelled: return "cancelled";
    case Code::device_lost: return "device_lost";
    case Code::internal: return "internal";
  }
  return "internal";
}

// Default visibility, so that a back end in its own shared library throws the same type.
class __attribute__((visibility("default"))) Error : public std::exception {
 public:
  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  Code code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

 private:
  Code code_;
  std::string message_;
};

// Joins its arguments as `<<` prints them: text("rank is ", rank, "; use 1 to 256").
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

template <class... Parts>
[[noreturn]] void fail(Code code, const Parts&... parts) {
  throw Error(code, text(parts...));
}

// Caller's mistake unless another code is named first:  require(n > 0, "n is ", n);  require(Code::corrupt, ok, "…");
// The message is built only when the condition is false.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] fail(Code::invalid, parts...);
}
template <class... Parts>
void require(Code code, bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] fail(code, parts...);
}

}  // namespace engine
