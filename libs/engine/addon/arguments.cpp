#include "arguments.h"

#include <cmath>
#include <cstring>

#include "core/error.h"

namespace engine::addon {
namespace {

const char* type_name(Napi::Value value) {
  if (value.IsNull()) return "null";
  if (value.IsUndefined()) return "undefined";
  if (value.IsTypedArray()) return "another kind of typed array";
  if (value.IsArray()) return "an array";
  if (value.IsString()) return "a string";
  if (value.IsNumber()) return "a number";
  if (value.IsBigInt()) return "a bigint";
  if (value.IsBoolean()) return "a boolean";
  if (value.IsFunction()) return "a function";
  if (value.IsObject()) return "an object";
  return "a value of another type";
}

template <class Element>
std::vector<Element> read_typed(Napi::Value value, napi_typedarray_type type, const char* name, const char* wanted) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == type, name, " is ", type_name(value), ", not ", wanted);
  const auto array = value.As<Napi::TypedArrayOf<Element>>();
  std::vector<Element> copy(array.ElementLength());
  if (!copy.empty()) std::memcpy(copy.data(), array.Data(), copy.size() * sizeof(Element));
  return copy;
}

}  // namespace

std::string read_string(Napi::Value value, const char* name) {
  require(value.IsString(), name, " is ", type_name(value), ", not a string");
  return value.As<Napi::String>().Utf8Value();
}

bool read_boolean(Napi::Value value, const char* name) {
  require(value.IsBoolean(), name, " is ", type_name(value), ", not true or false");
  return value.As<Napi::Boolean>().Value();
}

double read_number(Napi::Value value, const char* name) {
  require(value.IsNumber(), name, " is ", type_name(value), ", not a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  require(std::isfinite(number), name, " is ", number, "; use a finite number");
  return number;
}

std::int64_t read_integer(Napi::Value value, const char* name, std::int64_t least, std::int64_t most) {
  const double number = read_number(value, name);
  require(number == std::floor(number) && number >= static_cast<double>(least) && number <= static_cast<double>(most), name, " is ", number,
          "; use a whole number from ", least, " to ", most);
  return static_cast<std::int64_t>(number);
}

std::vector<std::string> read_strings(Napi::Value value, const char* name) {
  require(value.IsArray(), name, " is ", type_name(value), ", not an array of strings");
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> strings;
  for (std::uint32_t i = 0; i < array.Length(); ++i) strings.push_back(read_string(array.Get(i), name));
  return strings;
}

Napi::Object read_object(Napi::Value value, const char* name) {
  require(value.IsObject() && !value.IsArray() && !value.IsTypedArray() && !value.IsFunction(), name, " is ", type_name(value), ", not an object");
  return value.As<Napi::Object>();
}

std::vector<std::uint32_t> read_uint32s(Napi::Value value, const char* name) {
  return read_typed<std::uint32_t>(value, napi_uint32_array, name, "a Uint32Array");
}

std::vector<std::vector<std::uint32_t>> read_sequences(Napi::Value value) {
  require(value.IsArray(), "sequences is not an array");
  const auto list = value.As<Napi::Array>();
  std::vector<std::vector<std::uint32_t>> sequences;
  for (std::uint32_t i = 0; i < list.Length(); ++i) sequences.push_back(read_uint32s(list.Get(i), "a sequence"));
  return sequences;
}

std::vector<std::uint8_t> read_bytes(Napi::Value value, const char* name) {
  return read_typed<std::uint8_t>(value, napi_uint8_array, name, "a Uint8Array");
}

std::string read_path(Napi::Value value, const char* name) {
  std::string path = read_string(value, name);
  require(!path.empty(), name, " is empty");
  require(path.find('\0') == std::string::npos, name, " holds a NUL character");
  return path;
}

}  // namespace engine::addon
