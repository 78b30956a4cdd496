// test.cpp: runner and main() of every native test binary.
#include "core/test.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace engine::test {
namespace {

struct Case {
  const char* sentence;
  const char* file;
  int line;
  void (*body)();
};

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

int failures_in_case = 0;

bool selected(const Case& test, int argc, char** argv) {
  // Arguments are parts of sentences, or file:PART for the tests of files whose path has that part. Any one selects.
  constexpr std::string_view kFile = "file:";
  if (argc < 2) return true;
  for (int i = 1; i < argc; ++i) {
    const std::string_view part = argv[i];
    if (part.starts_with(kFile) ? std::string_view(test.file).find(part.substr(kFile.size())) != std::string_view::npos
                                : std::string_view(test.sentence).find(part) != std::string_view::npos)
      return true;
  }
  return false;
}

}  // namespace

Registration::Registration(const char* sentence, const char* file, int line, void (*body)()) { cases().push_back({sentence, file, line, body}); }

void report_failure(const char* file, int line, const std::string& message) {
  ++failures_in_case;
  if (failures_in_case <= 20) std::fprintf(stderr, "  %s:%d: %s\n", file, line, message.c_str());
}

bool throws_code(Code expected, const std::function<void()>& body, std::string& seen) {
  try {
    body();
  } catch (const Error& error) {
    seen = text(code_name(error.code()), ": ", error.message());
    return error.code() == expected;
  } catch (const std::exception& error) {
    seen = text("another exception: ", error.what());
    return false;
  }
  seen = "no exception";
  return false;
}

std::filesystem::path shared_dir() {
  const char* from_environment = std::getenv("MEDMESH_SHARED");
  const std::filesystem::path dir =
      from_environment != nullptr ? std::filesystem::path(from_environment) : std::filesystem::path(ENGINE_REPOSITORY_DIR).parent_path() / "shared";
  if (!std::filesystem::is_directory(dir)) throw Skipped{"real inputs are absent; set MEDMESH_SHARED to their directory"};
  return dir;
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "engine-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) fail(Code::io, "cannot make a temporary directory like ", pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

int run(int argc, char** argv) {
  int passed = 0, failed = 0, skipped = 0;
  for (const Case& test : cases()) {
    if (!selected(test, argc, argv)) continue;
    failures_in_case = 0;
    std::string skip_reason;
    const auto start = std::chrono::steady_clock::now();
    try {
      test.body();
    } catch (const Skipped& skip) {
      skip_reason = skip.reason;
    } catch (const Error& error) {
      report_failure(test.file, test.line, text("uncaught Error ", code_name(error.code()), ": ", error.message()));
    } catch (const std::exception& error) {
      report_failure(test.file, test.line, text("uncaught exception: ", error.what()));
    }
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (failures_in_case > 0) {
      ++failed;
      std::printf("FAIL %s (%d checks)\n", test.sentence, failures_in_case);
    } else if (!skip_reason.empty()) {
      ++skipped;
      std::printf("skip %s: %s\n", test.sentence, skip_reason.c_str());
    } else {
      ++passed;
      std::printf("ok   %s (%.0f ms)\n", test.sentence, ms);
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  if (passed + failed + skipped == 0) std::printf("no test matches\n");
  return failed == 0 && passed + skipped > 0 ? 0 : 1;
}

}  // namespace engine::test

int main(int argc, char** argv) { return engine::test::run(argc, argv); }
