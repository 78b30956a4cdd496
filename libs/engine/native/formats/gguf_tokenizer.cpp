#include "formats/gguf_tokenizer.h"

#include <unordered_map>

#include "core/error.h"
#include "core/mapped_file.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

constexpr float kAddedScore = -1000.0f;    // of tokens that are matched whole, before any merge
constexpr float kUnusedScore = -10000.0f;

bool between(std::string_view text, std::string_view begin, std::string_view end) {
  return text.size() >= begin.size() + end.size() && text.starts_with(begin) && text.ends_with(end);
}

// Some checkpoints forget to mark control tokens as special; llama.cpp's converter knows them by their looks, and so do its readers.
bool looks_special(std::string_view text) {
  return text == "<pad>" || text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" || between(text, "<|", "|>") ||
         between(text, "<\xEF\xBD\x9C", "\xEF\xBD\x9C>") || between(text, "<unused", ">");
}

bool is_byte(std::string_view text) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
  return text.size() == 6 && text.starts_with("<0x") && hex(text[3]) && hex(text[4]) && text[5] == '>';
}

std::string with_plain_spaces(std::string text) {
  constexpr std::string_view kSpace = "\xE2\x96\x81";
  for (std::size_t at = text.find(kSpace); at != std::string::npos; at = text.find(kSpace, at + 1)) text.replace(at, kSpace.size(), " ");
  return text;
}

// Minus the place of the first merge that makes each token.
std::unordered_map<std::string, float> scores_of(const TokenizerJson& tokenizer) {
  std::unordered_map<std::string, float> scores;
  scores.reserve(tokenizer.merges.size());
  for (std::size_t rank = 0; rank < tokenizer.merges.size(); ++rank)
    scores.emplace(tokenizer.merges[rank].first + tokenizer.merges[rank].second, -static_cast<float>(rank));
  return scores;
}

// "left right"; a space inside a side is written as byte-level BPE writes it.
std::string merge_text(const std::pair<std::string, std::string>& merge) {
  std::string out;
  const auto add = [&](const std::string& side) {
    for (const char c : side) c == ' ' ? out.append("\xC4\xA0") : out.append(1, c);  // Ġ
  };
  add(merge.first);
  out += ' ';
  add(merge.second);
  return out;
}

}  // namespace

void add_tokenizer(const TokenizerJson& tokenizer, const TokenizerRoles& roles, std::int64_t vocabulary, GgufMetadata& metadata) {
  const bool pieces = tokenizer.kind == TokenizerKind::sentence_piece;
  std::vector<std::string> tokens(static_cast<std::size_t>(vocabulary));
  std::vector<std::int32_t> types(tokens.size(), static_cast<std::int32_t>(GgufTokenType::unused));
  std::vector<float> scores(pieces ? tokens.size() : 0, kUnusedScore);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = text("[PAD", i, "]");
  const auto place = [&](std::int64_t id, std::string token, GgufTokenType type, float score) {
    require(Code::unsupported, id < vocabulary, "the tokenizer has a token with id ", id, ", but the model's vocabulary ends at ", vocabulary,
            ": resize the model's embeddings, or use its own tokenizer");
    const auto at = static_cast<std::size_t>(id);
    tokens[at] = std::move(token);
    types[at] = static_cast<std::int32_t>(type);
    if (pieces) scores[at] = score;
  };
  const auto merged = pieces ? scores_of(tokenizer) : std::unordered_map<std::string, float>{};
  // A piece that no merge makes is a single character, or is never made: last of all.
  const float last = -static_cast<float>(tokenizer.merges.size());
  for (const auto& [token, id] : tokenizer.vocabulary) {
    GgufTokenType type = GgufTokenType::normal;
    if (pieces && is_byte(token)) type = GgufTokenType::byte;
    if (!tokenizer.unknown.empty() && token == tokenizer.unknown) type = GgufTokenType::unknown;
    const auto score = merged.find(token);
    place(id, token, type, score == merged.end() ? last : score->second);
  }
  for (const AddedToken& added : tokenizer.added) {
    if (!tokenizer.unknown.empty() && added.content == tokenizer.unknown) {
      place(added.id, added.content, GgufTokenType::unknown, kAddedScore);
    } else if (added.special || looks_special(added.content)) {
      place(added.id, added.content, GgufTokenType::control, kAddedScore);
    } else {
      place(added.id, with_plain_spaces(added.content), GgufTokenType::user_defined, kAddedScore);
    }
  }

  const auto add = [&](const char* key, GgufValue value) { metadata.emplace_back(std::string("tokenizer.ggml.") + key, std::move(value)); };
  add("model", std::string(pieces ? "llama" : "gpt2"));
  add("pre", pieces ? std::string("default") : tokenizer.pre_tokenizer);
  add("tokens", std::move(tokens));
  if (pieces) add("scores", std::move(scores));
  add("token_type", std::move(types));
  if (!pieces) {
    std::vector<std::string> merges;
    merges.reserve(tokenizer.merges.size());
    for (const auto& merge : tokenizer.merges) merges.push_back(merge_text(merge));
    add("merges", std::move(merges));
  }
  const auto add_id = [&](const char* key, std::optional<std::int64_t> id) {
    if (id && *id < vocabulary) add(key, static_cast<std::uint32_t>(*id));
  };
  add_id("bos_token_id", roles.bos);
  add_id("eos_token_id", roles.eos);
  add_id("unknown_token_id", roles.unknown);
  add_id("seperator_token_id", roles.separator);  // llama.cpp's spelling
  add_id("padding_token_id", roles.padding);
  add_id("mask_token_id", roles.mask);
  add("add_bos_token", roles.add_bos);
  add("add_eos_token", roles.add_eos);
  if (pieces) add("add_space_prefix", tokenizer.space_prefix);
  if (!roles.chat_template.empty()) metadata.emplace_back("tokenizer.chat_template", roles.chat_template);
  std::vector<std::string> names;
  for (const auto& [name, body] : roles.more_templates) {
    metadata.emplace_back("tokenizer.chat_template." + name, body);
    names.push_back(name);
  }
  if (!names.empty()) metadata.emplace_back("tokenizer.chat_templates", std::move(names));
}

std::string add_folder_tokenizer(const fs::path& dir, const Json& model_config, std::int64_t vocabulary, GgufMetadata& metadata) {
  if (!fs::exists(dir / "tokenizer.json")) {
    for (const char* other : {"tokenizer.model", "vocab.json", "tekken.json"})
      require(Code::unsupported, !fs::exists(dir / other), dir.string(), " has its tokenizer as ", other,
              " only; save it as tokenizer.json (transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)) and export again");
    metadata.emplace_back("tokenizer.ggml.model", std::string("no_vocab"));
    return "no_vocab";
  }
  const auto contents = [](const MappedFile& file) { return std::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()); };
  const TokenizerJson tokenizer = parse_tokenizer_json(contents(MappedFile(dir / "tokenizer.json")));
  const Json config = fs::exists(dir / "tokenizer_config.json") ? read_json(dir / "tokenizer_config.json", {.max_bytes = 16'000'000}) : Json::object();
  std::string jinja;
  if (fs::exists(dir / "chat_template.jinja")) {
    const MappedFile file(dir / "chat_template.jinja");
    require(Code::corrupt, file.bytes().size() <= 4'000'000, "chat_template.jinja has ", file.bytes().size(), " bytes; the limit is 4000000");
    jinja = contents(file);
  }
  add_tokenizer(tokenizer, read_tokenizer_roles(tokenizer, config, model_config, jinja), vocabulary, metadata);
  return tokenizer.kind == TokenizerKind::sentence_piece ? "llama" : "gpt2";
}

}  // namespace engine
