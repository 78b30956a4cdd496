// tokenizer_fuzz.cpp: libFuzzer target. tokenizer.json and, after a 0x01 byte, tokenizer_config.json: refused as corrupt or unsupported, or turned into
// GGUF metadata whose lists have exactly the model's vocabulary.
#include <algorithm>
#include <cstdlib>

#include "core/error.h"
#include "formats/gguf_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(input.find('\x01'), input.size());
  constexpr std::int64_t kVocabulary = 64;
  try {
    const auto tokenizer = engine::parse_tokenizer_json(input.substr(0, end));
    const auto config = end < input.size() ? engine::parse_json(input.substr(end + 1), "tokenizer_config.json") : engine::Json::object();
    engine::GgufMetadata metadata;
    engine::add_tokenizer(tokenizer, engine::read_tokenizer_roles(tokenizer, config, {{"eos_token_id", 1}}, {}), kVocabulary, metadata);
    for (const auto& [key, value] : metadata) {
      if (key == "tokenizer.ggml.tokens" && std::get<std::vector<std::string>>(value).size() != kVocabulary) std::abort();
      if (key == "tokenizer.ggml.token_type" && std::get<std::vector<std::int32_t>>(value).size() != kVocabulary) std::abort();
    }
  } catch (const engine::Error& error) {
    if (error.code() != engine::Code::corrupt && error.code() != engine::Code::unsupported) std::abort();
  }
  return 0;
}
