// convert.h: engine results as JavaScript values. Absent is null, never a missing field.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace engine::addon {

inline Napi::Value to_js(Napi::Env env, const std::string& value) { return Napi::String::New(env, value); }
inline Napi::Value to_js(Napi::Env env, std::int64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }
inline Napi::Value to_js(Napi::Env env, double value) { return Napi::Number::New(env, value); }
inline Napi::Value to_js(Napi::Env env, bool value) { return Napi::Boolean::New(env, value); }

inline Napi::Value to_js(Napi::Env env, const std::vector<std::string>& values) {
  auto array = Napi::Array::New(env, values.size());
  for (std::size_t i = 0; i < values.size(); ++i) array.Set(static_cast<std::uint32_t>(i), to_js(env, values[i]));
  return array;
}

inline Napi::Value to_js(Napi::Env env, const std::vector<std::int64_t>& values) {
  auto array = Napi::Array::New(env, values.size());
  for (std::size_t i = 0; i < values.size(); ++i) array.Set(static_cast<std::uint32_t>(i), to_js(env, values[i]));
  return array;
}

// Hands the vector's memory to JavaScript without a copy.
template <class Element, class Array>
Napi::Value adopt(Napi::Env env, std::vector<Element> values) {
  const std::size_t count = values.size();
  if (count == 0) return Array::New(env, 0);
  auto* owner = new std::vector<Element>(std::move(values));
  const auto buffer =
      Napi::ArrayBuffer::New(env, owner->data(), count * sizeof(Element), [](Napi::Env, void*, std::vector<Element>* done) { delete done; }, owner);
  return Array::New(env, count, buffer, 0);
}
inline Napi::Value adopt_floats(Napi::Env env, std::vector<float> values) { return adopt<float, Napi::Float32Array>(env, std::move(values)); }
inline Napi::Value adopt_bytes(Napi::Env env, std::vector<std::uint8_t> values) { return adopt<std::uint8_t, Napi::Uint8Array>(env, std::move(values)); }

Napi::Value to_js(Napi::Env env, const ModelInfo& info);

}  // namespace engine::addon
