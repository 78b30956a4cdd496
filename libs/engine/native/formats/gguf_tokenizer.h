// gguf_tokenizer.h: a Hugging Face tokenizer as GGUF metadata (tokenizer.ggml.…), under the names llama.cpp reads.
//   byte_bpe        model "gpt2", pre = the word rule's name, tokens, token types, merges
//   sentence_piece  model "llama", tokens, token types, scores. SentencePiece merges the pair whose token scores highest, BPE the pair that comes
//                   first in its list; the score of a token is therefore minus the place of the first merge that makes it.
//   Ids that no token has (the vocabulary is padded) become "[PAD7]" of type unused: the list has exactly the model's vocabulary.
#pragma once

#include <filesystem>
#include <string>

#include "formats/gguf.h"
#include "formats/tokenizer_json.h"

namespace engine {

// The numbers are llama.cpp's.
enum class GgufTokenType : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

// Appends the entries to `metadata`. Throws unsupported when the tokenizer has an id that the model's `vocabulary` does not.
void add_tokenizer(const TokenizerJson& tokenizer, const TokenizerRoles& roles, std::int64_t vocabulary, GgufMetadata& metadata);

// Reads the tokenizer of a model folder and appends it; `model_config` is its config.json. Returns the model's name in GGUF: "gpt2", "llama", or
// "no_vocab" when the folder holds no tokenizer at all (then only token ids can be fed to the exported model). Throws what the parts throw, and
// unsupported for a folder that has a tokenizer.model but no tokenizer.json.
std::string add_folder_tokenizer(const std::filesystem::path& dir, const Json& model_config, std::int64_t vocabulary, GgufMetadata& metadata);

}  // namespace engine
