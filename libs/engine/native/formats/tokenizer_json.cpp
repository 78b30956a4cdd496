#include "formats/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>

#include "core/error.h"
#include "core/sorted_json.h"

namespace engine {
namespace {

constexpr std::string_view kWhat = "tokenizer.json";
constexpr std::string_view kSpace = "\xE2\x96\x81";  // ▁
constexpr std::int64_t kMaxId = (1 << 24) - 1;
constexpr JsonLimits kLimits{.max_bytes = 64'000'000, .max_depth = 32};

// The small parts of the file, with this project's getters.
Json part(const SortedJson& file, const char* key) {
  const auto found = file.find(key);
  return found == file.end() ? Json(nullptr) : Json(*found);
}

std::string type_of(const Json& step, std::string_view what) { return json_string(step, "type", what); }

[[noreturn]] void refuse_step(std::string_view role, const Json& step) {
  fail(Code::unsupported, kWhat, ": the ", role, " ", step.dump(-1, ' ', true).substr(0, 160), " has no equal in llama.cpp");
}

// A step, or the steps of a Sequence.
std::vector<Json> steps_of(const Json& step, const char* members) {
  if (step.is_null()) return {};
  require(Code::corrupt, step.is_object(), kWhat, ": a normalizer or pre-tokenizer is not an object");
  if (type_of(step, kWhat) != "Sequence") return {step};
  const Json& list = json_member(step, members, kWhat);
  require(Code::corrupt, list.is_array(), kWhat, ": \"", members, "\" is not a list");
  std::vector<Json> steps;
  for (const Json& item : list) {
    require(Code::corrupt, item.is_object(), kWhat, ": a member of \"", members, "\" is not an object");
    steps.push_back(item);
  }
  return steps;
}

// Whether `step` says {"type": "Split", "pattern": {kind: pattern}, "behavior": …, "invert": false}; the pattern if so.
std::optional<std::string> split_pattern(const Json& step, const char* kind, std::string_view behavior) {
  if (type_of(step, kWhat) != "Split" || find_json_bool(step, "invert", kWhat).value_or(false)) return std::nullopt;
  if (json_string(step, "behavior", kWhat) != behavior) return std::nullopt;
  const Json& pattern = json_member(step, "pattern", kWhat);
  return pattern.is_object() ? find_json_string(pattern, kind, kWhat) : std::nullopt;
}

bool replaces_spaces(const Json& step) {
  if (type_of(step, kWhat) != "Replace" || json_string(step, "content", kWhat) != kSpace) return false;
  const Json& pattern = json_member(step, "pattern", kWhat);
  return pattern.is_object() && find_json_string(pattern, "String", kWhat) == " ";
}

// ---- byte_bpe: the rule that cuts text into words, by the regular expression that defines it

struct KnownRule {
  std::string_view name, regex;
  bool ignore_merges;  // llama.cpp ties it to the name
};
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::array kRules = {
    KnownRule{"qwen2", R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)", false},
    KnownRule{"llama-bpe", kLlama3, true},
    KnownRule{"smaug-bpe", kLlama3, false},
    KnownRule{"tekken",
              R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
              true},
};

bool byte_level(const Json& step, bool splits) {
  return type_of(step, kWhat) == "ByteLevel" && !find_json_bool(step, "add_prefix_space", kWhat).value_or(true) &&
         find_json_bool(step, "use_regex", kWhat).value_or(true) == splits;
}

std::string word_rule(const Json& pre_tokenizer, bool ignore_merges) {
  const std::vector<Json> steps = steps_of(pre_tokenizer, "pretokenizers");
  if (steps.size() == 1 && byte_level(steps[0], true) && !ignore_merges) return "gpt-2";
  if (steps.size() == 2 && type_of(steps[0], kWhat) == "Digits" && find_json_bool(steps[0], "individual_digits", kWhat).value_or(false) &&
      byte_level(steps[1], true) && !ignore_merges)
    return "smollm";
  if (steps.size() == 2 && byte_level(steps[1], false))
    if (const auto regex = split_pattern(steps[0], "Regex", "Isolated"))
      for (const KnownRule& rule : kRules)
        if (rule.regex == *regex && rule.ignore_merges == ignore_merges) return std::string(rule.name);
  refuse_step(ignore_merges ? "pre-tokenizer (with ignore_merges)" : "pre-tokenizer", pre_tokenizer);
}

void check_byte_bpe(const SortedJson& file, TokenizerJson& result) {
  for (const Json& step : steps_of(part(file, "normalizer"), "normalizers"))
    if (type_of(step, kWhat) != "NFC") refuse_step("normalizer", step);  // llama.cpp reads composed text as it stands
  result.pre_tokenizer = word_rule(part(file, "pre_tokenizer"), result.ignore_merges);
}

// ---- sentence_piece: spaces become ▁, and a text may get one in front

void check_sentence_piece(const SortedJson& file, TokenizerJson& result) {
  bool spaces = false;
  for (const Json& step : steps_of(part(file, "normalizer"), "normalizers")) {
    if (replaces_spaces(step))
      spaces = true;
    else if (type_of(step, kWhat) == "Prepend" && json_string(step, "prepend", kWhat) == kSpace && !spaces)
      result.space_prefix = true;
    else
      refuse_step("normalizer", step);
  }
  for (const Json& step : steps_of(part(file, "pre_tokenizer"), "pretokenizers")) {
    // After the replacement there is no space left for this one to split at.
    if (spaces && split_pattern(step, "String", "MergedWithPrevious") == " ") continue;
    if (type_of(step, kWhat) != "Metaspace" || find_json_string(step, "replacement", kWhat) != kSpace || find_json_bool(step, "split", kWhat).value_or(true))
      refuse_step("pre-tokenizer", step);
    spaces = true;
    const std::string scheme = find_json_string(step, "prepend_scheme", kWhat)
                                   .value_or(find_json_bool(step, "add_prefix_space", kWhat).value_or(true) ? "always" : "never");
    require(Code::corrupt, scheme == "always" || scheme == "first" || scheme == "never", kWhat, ": the prepend_scheme is \"", scheme.substr(0, 40), "\"");
    result.space_prefix = scheme != "never";
  }
  require(Code::unsupported, spaces, kWhat, ": spaces do not become ▁, as they do in every SentencePiece tokenizer that llama.cpp reads");
}

// ---- the model

void read_vocabulary(const SortedJson& model, TokenizerJson& result) {
  const auto vocab = model.find("vocab");
  require(Code::corrupt, vocab != model.end() && vocab->is_object() && !vocab->empty(), kWhat, ": the model has no vocabulary");
  std::unordered_set<std::int64_t> ids;
  result.vocabulary.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    require(Code::corrupt, id.is_number_unsigned() && id.get<std::uint64_t>() <= kMaxId, kWhat, ": a token's id is not an integer from 0 to ", kMaxId);
    result.vocabulary.emplace_back(token, id.get<std::int64_t>());
    require(Code::corrupt, ids.insert(result.vocabulary.back().second).second, kWhat, ": two tokens have the id ", result.vocabulary.back().second);
  }
}

void read_merges(const SortedJson& model, TokenizerJson& result) {
  const auto merges = model.find("merges");
  require(Code::corrupt, merges != model.end() && merges->is_array(), kWhat, ": the model has no list of merges");
  result.merges.reserve(merges->size());
  for (const SortedJson& merge : *merges) {
    if (merge.is_string()) {  // before tokenizers 0.20: "left right"
      const auto& text = merge.get_ref<const std::string&>();
      const std::size_t gap = text.find(' ');
      require(Code::corrupt, gap != std::string::npos && gap > 0 && gap + 1 < text.size() && text.find(' ', gap + 1) == std::string::npos, kWhat,
              ": merge ", result.merges.size(), " is not two tokens with a space between");
      result.merges.emplace_back(text.substr(0, gap), text.substr(gap + 1));
      continue;
    }
    require(Code::corrupt, merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), kWhat, ": merge ", result.merges.size(),
            " is not a pair of tokens");
    result.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    require(Code::corrupt, !result.merges.back().first.empty() && !result.merges.back().second.empty(), kWhat, ": merge ", result.merges.size() - 1,
            " has an empty side");
  }
}

void read_added(const SortedJson& file, TokenizerJson& result) {
  const Json list = part(file, "added_tokens");
  if (list.is_null()) return;
  require(Code::corrupt, list.is_array(), kWhat, ": \"added_tokens\" is not a list");
  std::unordered_map<std::int64_t, std::string_view> by_id;
  std::unordered_map<std::string_view, std::int64_t> by_token;
  for (const auto& [token, id] : result.vocabulary) {
    by_id.emplace(id, token);
    by_token.emplace(token, id);
  }
  result.added.reserve(list.size());
  for (const Json& item : list) {
    AddedToken added{json_int(item, "id", kWhat), json_string(item, "content", kWhat), find_json_bool(item, "special", kWhat).value_or(false)};
    require(Code::corrupt, added.id >= 0 && added.id <= kMaxId && !added.content.empty(), kWhat, ": an added token is empty or has the id ", added.id);
    result.added.push_back(std::move(added));
    const AddedToken& kept = result.added.back();
    const auto [id_entry, new_id] = by_id.emplace(kept.id, kept.content);
    const auto [token_entry, new_token] = by_token.emplace(kept.content, kept.id);
    require(Code::corrupt, id_entry->second == kept.content && token_entry->second == kept.id, kWhat, ": the added token with id ", kept.id,
            " contradicts another token of that id or text");
  }
}

// The special tokens at the two ends of a TemplateProcessing's "single", wherever it stands.
void read_post_processor(const Json& processor, TokenizerJson& result) {
  for (const Json& step : steps_of(processor, "processors")) {
    if (type_of(step, kWhat) != "TemplateProcessing") continue;
    const Json& single = json_member(step, "single", kWhat);
    require(Code::corrupt, single.is_array(), kWhat, ": the post-processor's \"single\" is not a list");
    const auto special = [](const Json& piece) -> std::string {
      if (!piece.is_object() || !piece.contains("SpecialToken")) return {};
      return json_string(piece.at("SpecialToken"), "id", kWhat);
    };
    if (single.size() < 2) continue;
    result.first_special = special(single.front());
    result.last_special = special(single.back());
  }
}

// ---- roles

// tokenizer_config.json writes a token as text or as {"content": text, …}.
std::optional<std::string> token_text(const Json& config, const std::string& role) {
  const auto found = config.find(role);
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_object()) return find_json_string(*found, "content", "tokenizer_config.json");
  return find_json_string(config, role.c_str(), "tokenizer_config.json");
}

void read_templates(const Json& config, std::string_view jinja, TokenizerRoles& roles) {
  if (!jinja.empty()) {
    roles.chat_template = jinja;
    return;
  }
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return;
  if (found->is_string()) {
    roles.chat_template = found->get<std::string>();
    return;
  }
  require(Code::corrupt, found->is_array(), "tokenizer_config.json: \"chat_template\" is neither text nor a list");
  for (const Json& item : *found) {
    std::string name = json_string(item, "name", "tokenizer_config.json"), text = json_string(item, "template", "tokenizer_config.json");
    if (name == "default")
      roles.chat_template = std::move(text);
    else
      roles.more_templates.emplace_back(std::move(name), std::move(text));
  }
}

}  // namespace

std::optional<std::int64_t> TokenizerJson::id_of(std::string_view token) const {
  for (const AddedToken& item : added)
    if (item.content == token) return item.id;
  for (const auto& [text, id] : vocabulary)
    if (text == token) return id;
  return std::nullopt;
}

TokenizerJson parse_tokenizer_json(std::string_view text) {
  const SortedJson file = parse_sorted_json(text, kWhat, kLimits);
  require(Code::corrupt, file.is_object(), kWhat, " is not a JSON object");
  const auto model = file.find("model");
  require(Code::corrupt, model != file.end() && model->is_object(), kWhat, " has no \"model\"");
  Json settings = Json::object();
  for (const char* key : {"type", "byte_fallback", "ignore_merges", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto found = model->find(key); found != model->end()) settings[key] = Json(*found);

  const std::string type = find_json_string(settings, "type", kWhat).value_or("BPE");
  require(Code::unsupported, type == "BPE", kWhat, ": the model is \"", type.substr(0, 40), "\"; only BPE can be exported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    require(Code::unsupported, find_json_string(settings, key, kWhat).value_or("").empty(), kWhat, ": \"", key, "\" has no equal in llama.cpp");
  TokenizerJson result;
  result.kind = find_json_bool(settings, "byte_fallback", kWhat).value_or(false) ? TokenizerKind::sentence_piece : TokenizerKind::byte_bpe;
  result.ignore_merges = find_json_bool(settings, "ignore_merges", kWhat).value_or(false);
  result.unknown = find_json_string(settings, "unk_token", kWhat).value_or("");
  read_vocabulary(*model, result);
  read_merges(*model, result);
  read_added(file, result);
  read_post_processor(part(file, "post_processor"), result);
  if (result.kind == TokenizerKind::byte_bpe)
    check_byte_bpe(file, result);
  else
    check_sentence_piece(file, result);
  return result;
}

TokenizerRoles read_tokenizer_roles(const TokenizerJson& tokenizer, const Json& tokenizer_config, const Json& model_config, std::string_view jinja) {
  require(Code::corrupt, tokenizer_config.is_object(), "tokenizer_config.json is not a JSON object");
  TokenizerRoles roles;
  const auto id = [&](const char* role) -> std::optional<std::int64_t> {
    if (const auto text = token_text(tokenizer_config, std::string(role) + "_token"))
      if (const auto found = tokenizer.id_of(*text)) return found;
    const auto stored = model_config.find(std::string(role) + "_token_id");
    if (stored == model_config.end()) return std::nullopt;
    const Json& first = stored->is_array() && !stored->empty() ? stored->front() : *stored;  // several ends: the first is the main one
    if (!first.is_number_integer()) return std::nullopt;
    const auto value = first.get<std::int64_t>();
    return value >= 0 && value <= kMaxId ? std::optional(value) : std::nullopt;
  };
  roles.bos = id("bos");
  roles.eos = id("eos");
  roles.unknown = id("unk");
  roles.separator = id("sep");
  roles.padding = id("pad");
  roles.mask = id("mask");
  const auto adds = [&](const char* key, const std::string& special, std::optional<std::int64_t> role) {
    const bool by_processor = !special.empty() && role && tokenizer.id_of(special) == role;
    return find_json_bool(tokenizer_config, key, "tokenizer_config.json").value_or(by_processor);
  };
  roles.add_bos = adds("add_bos_token", tokenizer.first_special, roles.bos) && roles.bos;
  roles.add_eos = adds("add_eos_token", tokenizer.last_special, roles.eos) && roles.eos;
  read_templates(tokenizer_config, jinja, roles);
  return roles;
}

}  // namespace engine
