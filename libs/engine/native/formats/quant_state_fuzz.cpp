// quant_state_fuzz.cpp: libFuzzer target. The text of a bitsandbytes quant_state beside the parts of a [2, 64] matrix, singly or doubly quantized (the
// first byte's lowest bit): refused as corrupt or unsupported, or read as exactly that matrix.
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/code_tables.h"
#include "core/error.h"
#include "core/fuzz_folder.h"
#include "formats/bnb_nf4.h"

namespace {

std::string file_with(std::string_view state, bool twice) {
  std::string header = "{", data;
  const auto add = [&](const char* name, const char* dtype, const std::string& shape, std::string_view bytes) {
    header += std::string(header.size() > 1 ? "," : "") + "\"w" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[)" +
              std::to_string(data.size()) + "," + std::to_string(data.size() + bytes.size()) + "]}";
    data += bytes;
  };
  const auto raw = [](const auto& table) { return std::string_view(reinterpret_cast<const char*>(table.data()), sizeof table); };
  add("", "U8", "[64,1]", std::string(64, '\x5a'));
  add(".quant_map", "F32", "[16]", raw(engine::kNf4));
  if (twice) {
    add(".absmax", "U8", "[2]", "\x10\x20");
    add(".nested_absmax", "F32", "[1]", std::string(4, '\0'));
    add(".nested_quant_map", "F32", "[256]", raw(engine::kDynamicSigned));
  } else {
    add(".absmax", "F32", "[2]", std::string(8, '\0'));
  }
  add(".quant_state.bitsandbytes__nf4", "U8", "[" + std::to_string(state.size()) + "]", state);
  header += "}";
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const engine::fuzz::Folder folder;
  static const bool prepared = (folder.write("config.json", "{}"), true);
  (void)prepared;
  const bool twice = (data[0] & 1) != 0;
  folder.write("model.safetensors", file_with({reinterpret_cast<const char*>(data) + 1, size - 1}, twice));
  try {
    const engine::HfFolder model(folder.path());
    const auto stored = engine::find_nf4(model, "w");
    if (!stored || stored->rows * stored->cols != 128 || stored->double_quant != twice || stored->codes != model.at("w").data) std::abort();
    if (!twice && stored->absmax.size() != 2) std::abort();
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported) std::abort();
  }
  return 0;
}
