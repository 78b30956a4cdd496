#include "core/json.h"

#include "core/test.h"

namespace engine {

TEST("JSON keeps the order of keys") {
  CHECK_EQ(parse_json(R"({"b":1,"a":2})", "x").dump(), R"({"b":1,"a":2})");
}

TEST("hostile JSON is refused as corrupt") {
  CHECK_THROWS(corrupt, parse_json("", "x"));
  CHECK_THROWS(corrupt, parse_json("{", "x"));
  CHECK_THROWS(corrupt, parse_json("{} {}", "x"));
  CHECK_THROWS(corrupt, parse_json(std::string("{}\0}", 4), "x"));
  CHECK_THROWS(corrupt, parse_json(R"({"a":1,"a":2})", "x"));
  CHECK_THROWS(corrupt, parse_json(R"({"o":{"a":1,"b":[{"a":1}],"a":2}})", "x"));
  CHECK_THROWS(corrupt, parse_json("{\"a\":\"\xff\"}", "x"));
  CHECK_THROWS(corrupt, parse_json(R"({"a":NaN})", "x"));
  CHECK_THROWS(corrupt, parse_json(std::string(100'000, '['), "x"));
  CHECK_THROWS(corrupt, parse_json("[1,2,3]", "x", {.max_bytes = 3}));
}

TEST("the same key in sibling objects is allowed") {
  CHECK(parse_json(R"([{"a":1},{"a":2,"b":{"a":3}}])", "x").is_array());
}

TEST("a typed getter refuses another type instead of converting") {
  const Json object = parse_json(R"({"i":3,"f":3.0,"b":true,"s":"t","n":null,"big":18446744073709551615,"l":["a",1]})", "x");
  CHECK_EQ(json_int(object, "i", "x"), 3);
  CHECK_EQ(json_number(object, "i", "x"), 3.0);
  CHECK_THROWS(corrupt, json_int(object, "f", "x"));
  CHECK_THROWS(corrupt, json_int(object, "b", "x"));
  CHECK_THROWS(corrupt, json_int(object, "big", "x"));
  CHECK_THROWS(corrupt, json_int(object, "absent", "x"));
  CHECK_THROWS(corrupt, json_bool(object, "i", "x"));
  CHECK_THROWS(corrupt, json_string(object, "i", "x"));
  CHECK_THROWS(corrupt, find_json_strings(object, "l", "x"));
  CHECK(!find_json_int(object, "n", "x").has_value());
  CHECK_THROWS(corrupt, find_json_int(Json::array(), "n", "x"));
}

TEST("dump_like_python spaces items as json.dumps does") {
  CHECK_EQ(dump_like_python(parse_json(R"({"a":[1,2.5],"b":"é","c":{}})", "x")), R"({"a": [1, 2.5], "b": "\u00e9", "c": {}})");
}

}  // namespace engine
