// test.h: the engine's own test frame.   TEST("sentence about behaviour") { CHECK(x == 1); CHECK_EQ(a, b); CHECK_THROWS(corrupt, open(path)); }
//   A failed CHECK is printed and the test goes on; an exception ends that test as failed. SKIP("reason") ends it as skipped.
//   Run a binary with words to run only the tests whose sentence contains one of them.
#pragma once

#include <cmath>
#include <concepts>
#include <filesystem>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "core/error.h"

namespace engine::test {

struct Registration {
  Registration(const char* sentence, const char* file, int line, void (*body)());
};
struct Skipped {
  std::string reason;
};

void report_failure(const char* file, int line, const std::string& message);
bool throws_code(Code expected, const std::function<void()>& body, std::string& seen);

template <class T>
std::string printed(const T& value) {
  if constexpr (requires(std::ostringstream& out) { out << value; }) {
    std::ostringstream out;
    out.precision(9);
    out << value;
    return std::move(out).str();
  } else {
    return "(value)";
  }
}

// What std::cmp_equal takes: whole numbers, neither characters nor truth values.
template <class T>
concept WholeNumber = std::integral<T> && !std::same_as<T, bool> && !std::same_as<T, char> && !std::same_as<T, wchar_t> && !std::same_as<T, char8_t> &&
                      !std::same_as<T, char16_t> && !std::same_as<T, char32_t>;

template <class A, class B>
bool equal(const A& a, const B& b) {
  if constexpr (WholeNumber<A> && WholeNumber<B>)
    return std::cmp_equal(a, b);
  else
    return a == b;
}

// A function, so that temporaries in the operands live until they were compared and printed.
template <class A, class B>
void check_equal(const char* file, int line, const char* expression, const A& a, const B& b) {
  if (!equal(a, b)) report_failure(file, line, text(expression, ", but ", printed(a), " != ", printed(b)));
}

// Directory with real inputs and golden vectors: $MEDMESH_SHARED, else `shared` beside the repository. Skips the test when absent.
std::filesystem::path shared_dir();

// A fresh empty directory, removed with everything in it at the end of the scope.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace engine::test

#define ENGINE_TEST_JOIN2(a, b) a##b
#define ENGINE_TEST_JOIN(a, b) ENGINE_TEST_JOIN2(a, b)
#define ENGINE_TEST_NAMED(sentence, id)                                                                        \
  static void id();                                                                                            \
  static const ::engine::test::Registration ENGINE_TEST_JOIN(id, _registered)(sentence, __FILE__, __LINE__, id); \
  static void id()
#define TEST(sentence) ENGINE_TEST_NAMED(sentence, ENGINE_TEST_JOIN(engine_test_, __COUNTER__))

#define CHECK(...)                                                                                  \
  do {                                                                                              \
    if (!(__VA_ARGS__)) ::engine::test::report_failure(__FILE__, __LINE__, "false: " #__VA_ARGS__); \
  } while (false)

// Whole numbers are compared by value, whatever their types.
#define CHECK_EQ(a, b) ::engine::test::check_equal(__FILE__, __LINE__, #a " == " #b, (a), (b))

// |a − b| ≤ tolerance; a NaN fails.
#define CHECK_CLOSE(a, b, tolerance)                                                                                          \
  do {                                                                                                                        \
    const double engine_a = (a), engine_b = (b);                                                                              \
    if (!(std::abs(engine_a - engine_b) <= (tolerance)))                                                                      \
      ::engine::test::report_failure(__FILE__, __LINE__, ::engine::text(#a " ≈ " #b ", but ", ::engine::test::printed(engine_a), \
                                                                        " and ", ::engine::test::printed(engine_b),           \
                                                                        " differ by more than " #tolerance));                 \
  } while (false)

// The expression throws engine::Error with this code: CHECK_THROWS(corrupt, open(path)).
#define CHECK_THROWS(expected_code, ...)                                                                                                  \
  do {                                                                                                                                    \
    std::string engine_seen;                                                                                                              \
    if (!::engine::test::throws_code(::engine::Code::expected_code, [&] { (void)(__VA_ARGS__); }, engine_seen))                           \
      ::engine::test::report_failure(__FILE__, __LINE__, "expected Error " #expected_code " from " #__VA_ARGS__ ", but saw " + engine_seen); \
  } while (false)

#define SKIP(reason) throw ::engine::test::Skipped{reason}
