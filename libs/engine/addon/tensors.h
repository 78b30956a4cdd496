// tensors.h: the functions of the addon that read and write single safetensors files, whole or tensor by tensor.
#pragma once

#include <napi.h>

namespace engine::addon {

Napi::Value write_tensors(const Napi::CallbackInfo& info);  // (path, [{ name, dtype, shape, data }], { key: value }) -> undefined
Napi::Value read_tensors(const Napi::CallbackInfo& info);   // (path) -> [{ name, dtype, shape, data }]

// A file that is written piece by piece and appears at finish_tensors; closing the handle before discards it.
Napi::Value open_tensors(const Napi::CallbackInfo& info);    // (path, [{ name, dtype, shape }], { key: value }) -> handle
Napi::Value append_tensor(const Napi::CallbackInfo& info);   // (handle, name, bytes: Uint8Array) -> undefined
Napi::Value finish_tensors(const Napi::CallbackInfo& info);  // (handle) -> undefined

}  // namespace engine::addon
