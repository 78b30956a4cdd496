// peft_fuzz.cpp: libFuzzer target. adapter_config.json and adapter_model.safetensors: refused as corrupt or unsupported, or every pair of matrices has the
// rank that the configuration says, and lies inside the file.
#include <cstdlib>

#include "core/error.h"
#include "core/fuzz_folder.h"
#include "formats/peft_adapter.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const engine::fuzz::Folder folder;
  const engine::fuzz::TwoParts input({reinterpret_cast<const char*>(data), size});
  folder.write("adapter_config.json", input.first);
  folder.write("adapter_model.safetensors", input.second);
  try {
    const engine::PeftAdapter adapter(folder.path());
    engine::check_lora_config(adapter.config());
    std::uint64_t sum = 0;
    for (const engine::AdapterPair& pair : adapter.pairs()) {
      if (pair.a->shape.at(0) != adapter.config().rank || pair.b->shape.at(1) != adapter.config().rank) std::abort();
      for (const engine::TensorView* tensor : {pair.a, pair.b})
        for (std::int64_t i = 0; i < tensor->bytes; ++i) sum += tensor->data[i];
    }
    if (sum > std::uint64_t{255} * size) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported) std::abort();
  }
  return 0;
}
