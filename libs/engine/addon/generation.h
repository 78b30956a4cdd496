// generation.h: the functions of the addon that generate.
#pragma once

#include <napi.h>

namespace engine::addon {

// (model, tokens, adapter | null, sampling, onSteps) -> request number.   onSteps(steps: GenerateStep[], ended: boolean, error | null): steps that
// were made since the last call, in order; after `ended` it is not called again.
Napi::Value generate(const Napi::CallbackInfo& info);
Napi::Value cancel_generation(const Napi::CallbackInfo& info);  // (model, request); a finished request or a closed model is ignored

}  // namespace engine::addon
