// rope_config.h: config.json's rotary settings, in the style of transformers 4 or 5, as RopeParameters.
#pragma once

#include <cstdint>
#include <vector>

#include "core/json.h"
#include "ops/rope.h"

namespace engine {

// One spec, or two for a model whose sliding layers rotate by their own (Gemma 3): [0] for full, [1] for sliding attention.
//   default_theta   of the full layers when the file names none;   context = max_position_embeddings.
// Types default, linear, dynamic, llama3 and yarn; any other is Code::unsupported.
std::vector<RopeParameters> read_ropes(const Json& config, double default_theta, bool local_and_global, std::int64_t head_dim, std::int64_t context);

}  // namespace engine
