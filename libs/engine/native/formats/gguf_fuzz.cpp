// gguf_fuzz.cpp: libFuzzer target. Whatever the bytes, a GGUF file is refused as corrupt or unsupported, or its tensors lie inside it, aligned.
#include <cstdlib>

#include "core/error.h"
#include "formats/gguf_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto contents = engine::parse_gguf({data, size}, "input");
    std::uint64_t sum = 0;
    for (const auto& tensor : contents.tensors)
      for (std::int64_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
    if (sum > std::uint64_t{255} * size) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported) std::abort();
  }
  return 0;
}
