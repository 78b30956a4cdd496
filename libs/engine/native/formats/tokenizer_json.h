// tokenizer_json.h: the tokenizer of a Hugging Face folder, as far as another program must know it to split text the same way.
//   tokenizer.json holds vocabulary, merges and added tokens; tokenizer_config.json the roles of tokens and, with chat_template.jinja, the chat template.
//   Both come from outside: sizes, ids and types are checked before use.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"

namespace engine {

struct AddedToken {
  std::int64_t id = 0;
  std::string content;
  bool special = false;
};

enum class TokenizerKind : std::uint8_t {
  byte_bpe,       // BPE over bytes written as printable characters: GPT-2, Llama 3, Qwen
  sentence_piece  // BPE over characters with ▁ for a space and <0x00> … <0xFF> for what the vocabulary lacks: Llama 2, Mistral, Gemma
};

struct TokenizerJson {
  TokenizerKind kind = TokenizerKind::byte_bpe;
  std::vector<std::pair<std::string, std::int64_t>> vocabulary;  // ids are distinct, from 0 to below 2^24
  std::vector<std::pair<std::string, std::string>> merges;       // best first
  std::vector<AddedToken> added;                                 // may repeat entries of the vocabulary, with the same id
  std::string unknown;                                           // token of what cannot be split; empty when there is none
  bool ignore_merges = false;                                    // a word that is a token is not split
  bool space_prefix = false;                                     // sentence_piece: text begins with a ▁ that it does not have
  std::string pre_tokenizer;                                     // byte_bpe: llama.cpp's name of the rule that cuts text into words
  std::string first_special, last_special;                       // what the post-processor puts around a text; empty for none

  std::optional<std::int64_t> id_of(std::string_view token) const;  // among the added tokens, then the vocabulary
};

// Throws corrupt for a malformed file; unsupported, naming the setting, for a model, normalizer or pre-tokenizer that llama.cpp has no equal of.
TokenizerJson parse_tokenizer_json(std::string_view text);

// What tokenizer_config.json and chat_template.jinja tell, plus the ids of config.json where they are silent.
struct TokenizerRoles {
  std::optional<std::int64_t> bos, eos, unknown, separator, padding, mask;
  bool add_bos = false, add_eos = false;
  std::string chat_template;                                            // empty when there is none
  std::vector<std::pair<std::string, std::string>> more_templates;      // name, template
};
TokenizerRoles read_tokenizer_roles(const TokenizerJson& tokenizer, const Json& tokenizer_config, const Json& model_config, std::string_view jinja);

}  // namespace engine
