#include "core/json.h"

#include <limits>
#include <unordered_set>

#include "core/error.h"
#include "core/mapped_file.h"
#include "core/sorted_json.h"

namespace engine {
namespace {

const Json* find_member(const Json& object, const char* key, std::string_view what) {
  require(Code::corrupt, object.is_object(), what, " is ", object.type_name(), ", not an object");
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

[[noreturn]] void wrong_type(std::string_view what, const char* key, const Json& value, const char* wanted) {
  fail(Code::corrupt, what, ": \"", key, "\" is ", value.is_number_float() ? "a fractional number" : value.type_name(), ", not ", wanted);
}

std::int64_t as_int(const Json& value, const char* key, std::string_view what) {
  if (!value.is_number_integer()) wrong_type(what, key, value, "an integer");
  if (value.is_number_unsigned())
    require(Code::corrupt, value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}, what, ": \"", key,
            "\" does not fit a signed 64-bit integer");
  return value.get<std::int64_t>();
}
double as_number(const Json& value, const char* key, std::string_view what) {
  if (!value.is_number()) wrong_type(what, key, value, "a number");
  return value.get<double>();
}
bool as_bool(const Json& value, const char* key, std::string_view what) {
  if (!value.is_boolean()) wrong_type(what, key, value, "true or false");
  return value.get<bool>();
}
std::string as_string(const Json& value, const char* key, std::string_view what) {
  if (!value.is_string()) wrong_type(what, key, value, "a string");
  return value.get<std::string>();
}

void dump_spaced(const Json& value, std::string& out) {
  if (value.is_object()) {
    out += '{';
    const char* separator = "";
    for (const auto& [key, member] : value.items()) {
      out += separator;
      out += Json(key).dump(-1, ' ', true) + ": ";
      dump_spaced(member, out);
      separator = ", ";
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    const char* separator = "";
    for (const Json& item : value) {
      out += separator;
      dump_spaced(item, out);
      separator = ", ";
    }
    out += ']';
  } else {
    out += value.dump(-1, ' ', true);
  }
}

template <class AnyJson>
AnyJson parse_as(std::string_view input, std::string_view what, JsonLimits limits) {
  require(Code::corrupt, static_cast<std::int64_t>(input.size()) <= limits.max_bytes, what, " has ", input.size(), " bytes of JSON; the limit is ",
          limits.max_bytes);
  // The parser takes a NUL for the end of its input and would not see what follows.
  require(Code::corrupt, input.find('\0') == std::string_view::npos, what, " has a NUL byte in its JSON");
  std::vector<std::unordered_set<std::string>> open_objects;
  const auto check = [&](int depth, typename AnyJson::parse_event_t event, AnyJson& value) {
    switch (event) {
      case AnyJson::parse_event_t::object_start:
      case AnyJson::parse_event_t::array_start:
        require(Code::corrupt, depth < limits.max_depth, what, " nests JSON deeper than ", limits.max_depth, " levels");
        if (event == AnyJson::parse_event_t::object_start) open_objects.emplace_back();
        break;
      case AnyJson::parse_event_t::object_end: open_objects.pop_back(); break;
      case AnyJson::parse_event_t::key:
        require(Code::corrupt, open_objects.back().insert(value.template get_ref<const std::string&>()).second, what, " has the key \"",
                value.template get_ref<const std::string&>().substr(0, 200), "\" twice");
        break;
      default: break;
    }
    return true;
  };
  try {
    return AnyJson::parse(input.begin(), input.end(), check);
  } catch (const nlohmann::json::exception& error) {
    // nlohmann quotes the text around the fault; keep only the position.
    const auto* parse = dynamic_cast<const nlohmann::json::parse_error*>(&error);
    fail(Code::corrupt, what, " is not valid JSON", parse != nullptr ? text(" at byte ", parse->byte) : std::string());
  }
}

}  // namespace

Json parse_json(std::string_view input, std::string_view what, JsonLimits limits) { return parse_as<Json>(input, what, limits); }
SortedJson parse_sorted_json(std::string_view input, std::string_view what, JsonLimits limits) { return parse_as<SortedJson>(input, what, limits); }

Json read_json(const std::filesystem::path& path, JsonLimits limits) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.filename().string(), limits);
}

const Json& json_member(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  require(Code::corrupt, value != nullptr, what, " has no \"", key, "\"");
  return *value;
}

std::int64_t json_int(const Json& object, const char* key, std::string_view what) { return as_int(json_member(object, key, what), key, what); }
double json_number(const Json& object, const char* key, std::string_view what) { return as_number(json_member(object, key, what), key, what); }
bool json_bool(const Json& object, const char* key, std::string_view what) { return as_bool(json_member(object, key, what), key, what); }
std::string json_string(const Json& object, const char* key, std::string_view what) { return as_string(json_member(object, key, what), key, what); }

std::optional<std::int64_t> find_json_int(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  return value == nullptr ? std::nullopt : std::optional(as_int(*value, key, what));
}
std::optional<double> find_json_number(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  return value == nullptr ? std::nullopt : std::optional(as_number(*value, key, what));
}
std::optional<bool> find_json_bool(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  return value == nullptr ? std::nullopt : std::optional(as_bool(*value, key, what));
}
std::optional<std::string> find_json_string(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  return value == nullptr ? std::nullopt : std::optional(as_string(*value, key, what));
}
std::optional<std::vector<std::string>> find_json_strings(const Json& object, const char* key, std::string_view what) {
  const Json* value = find_member(object, key, what);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) wrong_type(what, key, *value, "a list of strings");
  std::vector<std::string> strings;
  for (const Json& item : *value) strings.push_back(as_string(item, key, what));
  return strings;
}

std::string dump_like_python(const Json& value) {
  std::string out;
  dump_spaced(value, out);
  return out;
}

}  // namespace engine
