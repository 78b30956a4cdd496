// files.h: the functions of the addon that read and write model files.
#pragma once

#include <napi.h>

namespace engine::addon {

Napi::Value inspect_safetensors(const Napi::CallbackInfo& info);  // (path) -> { metadata, tensors }
Napi::Value inspect_model_dir(const Napi::CallbackInfo& info);    // (dir) -> ModelInfo
Napi::Value quantize_model_dir(const Napi::CallbackInfo& info);   // (modelDir, outDir, doubleQuant, skipModules, replace, onProgress | null, cancel | null) -> { weightBytes, tensors }
Napi::Value merge_adapter_dir(const Napi::CallbackInfo& info);    // (modelDir, adapterDir, outDir, replace, onProgress | null, cancel | null) -> { weightBytes, base }
// (modelDir, adapterDir | null, outPath, type, name, replace, onProgress | null, cancel | null) -> { fileBytes, tensors, architecture, tokenizer, contextLength, base, parity }
Napi::Value export_gguf_file(const Napi::CallbackInfo& info);
Napi::Value verify_gguf_file(const Napi::CallbackInfo& info);  // (modelDir, adapterDir | null, path, sequences, cancel | null) -> promise of {recorded | null, measured, logprobs}

}  // namespace engine::addon
