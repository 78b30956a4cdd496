// folder_fuzz.cpp: libFuzzer target. An index and a shard: refused as corrupt, io (a shard that is not there) or unsupported, or every tensor lies inside
// the shard and is found by its name.
#include <cstdlib>

#include "core/error.h"
#include "core/fuzz_folder.h"
#include "formats/hf_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const engine::fuzz::Folder folder;
  static const bool prepared = (folder.write("config.json", "{}"), true);
  (void)prepared;
  const engine::fuzz::TwoParts input({reinterpret_cast<const char*>(data), size});
  folder.write("model.safetensors.index.json", input.first);
  folder.write("a.safetensors", input.second);
  try {
    const engine::HfFolder model(folder.path());
    std::uint64_t sum = 0;
    for (const engine::TensorView* tensor : model.tensors()) {
      if (model.find(tensor->name) != tensor) std::abort();
      for (std::int64_t i = 0; i < tensor->bytes; ++i) sum += tensor->data[i];
    }
    if (sum > std::uint64_t{255} * size) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported && error.code() != engine::Code::io) std::abort();
  }
  return 0;
}
