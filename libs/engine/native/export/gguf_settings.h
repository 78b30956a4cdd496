// gguf_settings.h: a model's hyper-parameters under llama.cpp's keys, and what its graphs can compute.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/gguf_plan.h"

namespace engine {

// llama.cpp's name of the graph that computes this model. Throws unsupported, naming the setting, when that graph lacks something the model has.
std::string llama_architecture(const ModelSpec& spec);

// The longest sequence that graph computes as the model means it: windows and dynamic scaling it lacks do not matter up to there.
std::int64_t exact_context(const ModelSpec& spec);

// What queries are multiplied by because the graph scales q·k by the head size alone; 1 but for unusual Gemma 2 and 3 models.
float query_factor(const ModelSpec& spec);

// llama3 scaling: what each rotary frequency is divided by, [head_dim / 2]; empty for other scalings.
std::vector<float> rope_factors(const ModelSpec& spec);

// general.… and <architecture>.…
GgufMetadata gguf_settings(const ModelSpec& spec, const std::string& architecture, GgufRecipe recipe, std::int64_t context);

}  // namespace engine
