// safetensors_header.h: the JSON header of a safetensors file, token by token, so a hostile header costs no more memory than its names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"

namespace engine {

struct HeaderEntry {
  std::string name;
  Dtype dtype;
  std::vector<std::int64_t> shape;
  std::int64_t begin, end;  // offsets into the data section
};

struct SafetensorsHeader {
  std::vector<HeaderEntry> entries;  // in the header's order
  Metadata metadata;
};

// Checks syntax, keys, names, dtypes and number ranges; offsets are checked against the data by the caller. Throws corrupt.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::string_view what);

}  // namespace engine
