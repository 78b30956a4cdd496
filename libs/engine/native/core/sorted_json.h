// sorted_json.h: strict JSON as sorted maps, for objects of very many keys (a vocabulary): Json looks through all keys for each one it adds.
#pragma once

#include "core/json.h"

namespace engine {

using SortedJson = nlohmann::json;
// As parse_json.
SortedJson parse_sorted_json(std::string_view input, std::string_view what, JsonLimits limits = {});

}  // namespace engine
