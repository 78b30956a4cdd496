// json_fuzz.cpp: libFuzzer target. Whatever the text, it is refused as corrupt or printed and parsed to the same value.
#include <cstdlib>

#include "core/error.h"
#include "core/json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const engine::Json value = engine::parse_json({reinterpret_cast<const char*>(data), size}, "input");
    if (engine::parse_json(engine::dump_like_python(value), "printed") != value) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt) std::abort();
  }
  return 0;
}
