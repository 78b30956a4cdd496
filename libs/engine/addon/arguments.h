// arguments.h: strict reading of JavaScript values. Everything throws engine::Error invalid and says which value was wrong.
#pragma once

#include <napi.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace engine::addon {

std::string read_string(Napi::Value value, const char* name);
bool read_boolean(Napi::Value value, const char* name);
double read_number(Napi::Value value, const char* name);                                                  // finite
std::int64_t read_integer(Napi::Value value, const char* name, std::int64_t least, std::int64_t most);    // exact, in [least, most]
std::vector<std::string> read_strings(Napi::Value value, const char* name);
Napi::Object read_object(Napi::Value value, const char* name);
std::vector<std::uint32_t> read_uint32s(Napi::Value value, const char* name);  // a Uint32Array, copied
std::vector<std::vector<std::uint32_t>> read_sequences(Napi::Value value);      // an array of them
std::vector<std::uint8_t> read_bytes(Napi::Value value, const char* name);     // a Uint8Array, copied

// A path: not empty, no NUL.
std::string read_path(Napi::Value value, const char* name);

inline bool is_absent(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

}  // namespace engine::addon
