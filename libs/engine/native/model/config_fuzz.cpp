// config_fuzz.cpp: libFuzzer target. Whatever the config.json, it is refused as corrupt or unsupported, or gives a spec whose sizes are in range and
// whose tensors can be listed and counted.
#include <cstdlib>

#include "core/error.h"
#include "model/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto spec = engine::read_spec(engine::parse_json({reinterpret_cast<const char*>(data), size}, "config.json"));
    if (spec.ropes.empty() || static_cast<std::int64_t>(spec.layer.size()) != spec.layers || spec.heads % spec.kv_heads != 0) std::abort();
    for (const auto& layer : spec.layer)
      if (layer.window < 0 || layer.rope < 0 || layer.rope >= static_cast<int>(spec.ropes.size())) std::abort();
    if (spec.layers <= 8 && engine::parameter_count(spec) <= 0) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported) std::abort();
  }
  return 0;
}
