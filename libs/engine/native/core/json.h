// json.h: strict JSON for files that come from outside.
//   Key order is kept. Duplicate keys, invalid UTF-8, trailing text, NaN, deep nesting and oversized input are refused.
//   The getters refuse what nlohmann's `get` converts silently (a float to an int, an int out of range, a bool to a number).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace engine {

using Json = nlohmann::ordered_json;

struct JsonLimits {
  std::int64_t max_bytes = 100'000'000;
  int max_depth = 64;
};

// `what` names the input in messages ("config.json"). Throws corrupt.
Json parse_json(std::string_view input, std::string_view what, JsonLimits limits = {});

// Reads and parses a file. Throws io when it cannot be read, corrupt when it is not such JSON.
Json read_json(const std::filesystem::path& path, JsonLimits limits = {});

// Typed members of an object. `what` names the object. A missing key, null included, is Code::corrupt for the plain form and
// nullopt for `find_`; a value of another type is Code::corrupt for both. Numbers must be exact: 3.0 is not an integer.
const Json& json_member(const Json& object, const char* key, std::string_view what);
std::int64_t json_int(const Json& object, const char* key, std::string_view what);
double json_number(const Json& object, const char* key, std::string_view what);
bool json_bool(const Json& object, const char* key, std::string_view what);
std::string json_string(const Json& object, const char* key, std::string_view what);

std::optional<std::int64_t> find_json_int(const Json& object, const char* key, std::string_view what);
std::optional<double> find_json_number(const Json& object, const char* key, std::string_view what);
std::optional<bool> find_json_bool(const Json& object, const char* key, std::string_view what);
std::optional<std::string> find_json_string(const Json& object, const char* key, std::string_view what);
std::optional<std::vector<std::string>> find_json_strings(const Json& object, const char* key, std::string_view what);

// `json.dumps(value)` of Python: ", " and ": " between items, non-ASCII escaped. Bitsandbytes' quant_state uses it.
std::string dump_like_python(const Json& value);

}  // namespace engine
