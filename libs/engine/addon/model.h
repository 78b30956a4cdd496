// model.h: the functions of the addon that load models and adapters and run them.
#pragma once

#include <napi.h>

namespace engine::addon {

Napi::Value list_devices(const Napi::CallbackInfo& info);  // () -> EngineDevice[]
Napi::Value used_device_memory(const Napi::CallbackInfo& info);  // (index of a CUDA device) -> bytes
Napi::Value load_model(const Napi::CallbackInfo& info);    // (dir, quantize, compute, threads, device, cancel | null) -> { handle, info, residentBytes }
Napi::Value load_adapter(const Napi::CallbackInfo& info);  // (model, dir) -> { handle, rank, alpha, dropout, rslora, targetModules, parameterCount }
Napi::Value score(const Napi::CallbackInfo& info);         // (model, tokens, adapter | null, cancel | null) -> Float32Array
Napi::Value logits(const Napi::CallbackInfo& info);        // (model, tokens, adapter | null, cancel | null) -> Float32Array

}  // namespace engine::addon
