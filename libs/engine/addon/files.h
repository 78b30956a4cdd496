// files.h: the functions of the addon that read and write files.
#pragma once

#include <napi.h>

namespace engine::addon {

Napi::Value inspect_safetensors(const Napi::CallbackInfo& info);  // (path) -> { metadata, tensors }
Napi::Value inspect_model_dir(const Napi::CallbackInfo& info);    // (dir) -> ModelInfo
Napi::Value quantize_model_dir(const Napi::CallbackInfo& info);   // (modelDir, outDir, doubleQuant, onProgress | null, cancel | null) -> { weightBytes, tensors }
Napi::Value merge_adapter_dir(const Napi::CallbackInfo& info);    // (modelDir, adapterDir, outDir, onProgress | null, cancel | null) -> { weightBytes, base }
Napi::Value write_tensors(const Napi::CallbackInfo& info);        // (path, [{ name, dtype, shape, data }], { key: value }) -> undefined
Napi::Value read_tensors(const Napi::CallbackInfo& info);         // (path) -> [{ name, dtype, shape, data }]

}  // namespace engine::addon
