#include "formats/module_pattern.h"

#include <string>

#include "core/test.h"

namespace engine {
namespace {

const std::string kUp = "model.layers.11.mlp.up_proj";

bool names(std::string_view key, std::string_view path) { return ModulePattern(key).names(path); }

}  // namespace

// Every expectation is what Python's re.match(rf"(.*\\.)?({key})$", path) says.
TEST("a key names the paths that end with it, from the start of a component") {
  CHECK(names("up_proj", kUp));
  CHECK(names("up_proj", "up_proj"));
  CHECK(names("11.mlp.up_proj", kUp));
  CHECK(names("model.layers.11.mlp.up_proj", kUp));
  CHECK(!names("1.mlp.up_proj", kUp));
  CHECK(!names("proj", kUp));
  CHECK(!names("mlp", kUp));
  CHECK(!names("model", kUp));
  CHECK(!names("", kUp));
}

TEST("a key is a regular expression of Python's") {
  for (const char* key : {".*", ".*proj", R"(layers\.\d+\.mlp\.(up|gate)_proj)", R"(layers\.1{2}\..*)", R"(layers\.[0-9]{1,2}\.mlp\.\w+)", "^model.*up_proj$",
                          R"(\Amodel\..+\Z)", "(?:q|up)_proj", "(?P<kind>up)_proj", "[^q]p_proj", "[]u]p_proj", "[a-u]p_pro[\\w-]", "up_(proj)?", "up_proj|q_proj",
                          "q_proj|up_proj", "u+?p_proj", "(u?p?_?)*proj", "up_proj{1}", "(x|)up_proj", "mlp_up_proj|mlp[._]up_proj", "up_[p-p]{,1}roj", "(()*)*up_proj"})
    if (!names(key, kUp)) test::report_failure(__FILE__, __LINE__, std::string("does not name it: ") + key);
  for (const char* key : {"^up_proj", R"(up\.proj)", R"(layers\.1\..*)", R"(layers\.1{3}\..*)", "[^u]p_proj", "up_proj.", "up_pro", "u{2,}p_proj", "up_proj$x", "mlp|up", "up{_proj",
                          "[0-9]+", R"(\D\Dp_proj)"})
    if (names(key, kUp)) test::report_failure(__FILE__, __LINE__, std::string("names it: ") + key);
  CHECK(names("a{x}", "b.a{x}"));
  CHECK(names("a{2", "a{2"));
  CHECK(names(R"(\{a\})", "{a}"));
}

TEST("what Python refuses in a pattern, or this engine does not have, is refused") {
  for (const char* key : {"(up_proj", "up_proj)", "[up", "*up", "up**", "up{2}{3}", "up*+", "a|*", "^*", "(?=up).*", "(?i)up_proj", "(?P=kind)", "(?P<1>u)", "(?P<>u)", R"((u)\1)", R"(\bup)",
                          R"(\qup)", "up\\", "[z-a]", R"([\d-z])", "u{3,2}", "u{2000}", "((((u{50}){50}){50}){50})", "[]"}) {
    std::string seen;
    if (!test::throws_code(Code::unsupported, [&] { ModulePattern{key}; }, seen)) test::report_failure(__FILE__, __LINE__, std::string(key) + ": " + seen);
  }
  CHECK_THROWS(unsupported, ModulePattern(std::string(100, '(') + std::string(100, ')')));
  CHECK_THROWS(unsupported, ModulePattern(std::string(5000, 'a')));
}

TEST("a pattern that would keep a backtracking matcher busy for ever is answered at once") {
  CHECK(!names("(a*)*(a|aa)+(.*.*.*)*b", std::string(4000, 'a')));
  CHECK(names("(a*)*(a|aa)+(.*.*.*)*b", std::string(4000, 'a') + "b"));
}

}  // namespace engine
