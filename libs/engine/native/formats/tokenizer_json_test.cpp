#include "formats/tokenizer_json.h"

#include <algorithm>

#include "core/error.h"
#include "core/test.h"
#include "formats/gguf_tokenizer.h"

namespace engine {
namespace {

constexpr const char* kQwenRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";

std::string split_then_bytes(const std::string& regex) {
  return R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")" + regex +
         R"("},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]})";
}
const std::string kGpt2 = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":true})";

std::string bpe(const std::string& pre_tokenizer, const std::string& normalizer = "null", const std::string& model = "",
                const std::string& added = R"([{"id":4,"content":"<|end|>","special":false},{"id":5,"content":"<think>","special":false}])") {
  return R"({"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer + R"(,"added_tokens":)" + added + R"(,"model":{"type":"BPE",)" + model +
         R"("vocab":{"a":0,"b":1,"ab":2,"aba":3},"merges":["a b",["ab","a"]]}})";
}

// A tokenizer as Llama 2's: ▁ for spaces, bytes for what the vocabulary lacks.
std::string pieces(const std::string& normalizer = R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},)"
                                                   R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]})",
                   const std::string& pre_tokenizer = "null") {
  return R"({"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer +
         R"(,"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true},{"id":8,"content":"▁▁","special":false}],)"
         R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[]},)"
         R"("model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>","vocab":{"<unk>":0,"<s>":1,"<0x0A>":2,"▁":3,"a":4,"b":5,"▁a":6,"▁ab":7},)"
         R"("merges":["▁ a","▁a b"]}})";
}

const GgufValue* find(const GgufMetadata& metadata, const std::string& key) {
  const auto found = std::ranges::find(metadata, key, &GgufMetadata::value_type::first);
  return found == metadata.end() ? nullptr : &found->second;
}
template <class T>
T get(const GgufMetadata& metadata, const std::string& key) {
  const GgufValue* value = find(metadata, key);
  if (value == nullptr) fail(Code::internal, "no ", key);
  return std::get<T>(*value);
}

GgufMetadata export_tokenizer(const std::string& text, std::int64_t vocabulary, const Json& config = Json::object(), const Json& model = Json::object(),
                              std::string_view jinja = {}) {
  const TokenizerJson tokenizer = parse_tokenizer_json(text);
  GgufMetadata metadata;
  add_tokenizer(tokenizer, read_tokenizer_roles(tokenizer, config, model, jinja), vocabulary, metadata);
  return metadata;
}

}  // namespace

TEST("a byte-level BPE tokenizer becomes a gpt2 vocabulary, padded to the model's") {
  const GgufMetadata metadata = export_tokenizer(bpe(split_then_bytes(kQwenRegex), R"({"type":"NFC"})"), 8,
                                                 {{"eos_token", {{"content", "<|end|>"}}}, {"chat_template", "{{ x }}"}, {"add_bos_token", false}},
                                                 {{"eos_token_id", 0}, {"bos_token_id", 1}});
  CHECK_EQ(get<std::string>(metadata, "tokenizer.ggml.model"), "gpt2");
  CHECK_EQ(get<std::string>(metadata, "tokenizer.ggml.pre"), "qwen2");
  CHECK(get<std::vector<std::string>>(metadata, "tokenizer.ggml.tokens") ==
        (std::vector<std::string>{"a", "b", "ab", "aba", "<|end|>", "<think>", "[PAD6]", "[PAD7]"}));
  CHECK(get<std::vector<std::int32_t>>(metadata, "tokenizer.ggml.token_type") == (std::vector<std::int32_t>{1, 1, 1, 1, 3, 4, 5, 5}));
  CHECK(get<std::vector<std::string>>(metadata, "tokenizer.ggml.merges") == (std::vector<std::string>{"a b", "ab a"}));
  CHECK_EQ(get<std::uint32_t>(metadata, "tokenizer.ggml.eos_token_id"), 4u);  // tokenizer_config.json comes before config.json
  CHECK_EQ(get<std::uint32_t>(metadata, "tokenizer.ggml.bos_token_id"), 1u);
  CHECK_EQ(get<bool>(metadata, "tokenizer.ggml.add_bos_token"), false);
  CHECK_EQ(get<std::string>(metadata, "tokenizer.chat_template"), "{{ x }}");
}

TEST("the rule that cuts words is named as llama.cpp names it, and another is refused") {
  const std::string llama3 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";
  const std::string ignore = R"("ignore_merges":true,)";
  CHECK_EQ(parse_tokenizer_json(bpe(split_then_bytes(llama3), "null", ignore)).pre_tokenizer, "llama-bpe");
  CHECK_EQ(parse_tokenizer_json(bpe(split_then_bytes(llama3))).pre_tokenizer, "smaug-bpe");
  CHECK_EQ(parse_tokenizer_json(bpe(kGpt2)).pre_tokenizer, "gpt-2");
  const std::string digits = R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)" + kGpt2 + "]}";
  CHECK_EQ(parse_tokenizer_json(bpe(digits)).pre_tokenizer, "smollm");
  CHECK_THROWS(unsupported, parse_tokenizer_json(bpe(split_then_bytes("[a-z]+"))));
  CHECK_THROWS(unsupported, parse_tokenizer_json(bpe(split_then_bytes(kQwenRegex), "null", ignore)));
  CHECK_THROWS(unsupported, parse_tokenizer_json(bpe(kGpt2, R"({"type":"Lowercase"})")));
  CHECK_THROWS(unsupported, parse_tokenizer_json(bpe("null")));
}

TEST("a SentencePiece tokenizer becomes a llama vocabulary whose scores order the merges") {
  const GgufMetadata metadata = export_tokenizer(pieces(), 10, {{"bos_token", "<s>"}, {"unk_token", "<unk>"}});
  CHECK_EQ(get<std::string>(metadata, "tokenizer.ggml.model"), "llama");
  CHECK(get<std::vector<std::int32_t>>(metadata, "tokenizer.ggml.token_type") == (std::vector<std::int32_t>{2, 3, 6, 1, 1, 1, 1, 1, 4, 5}));
  const auto scores = get<std::vector<float>>(metadata, "tokenizer.ggml.scores");
  CHECK(scores[6] > scores[7]);  // "▁a" is made before "▁ab"
  CHECK(scores[7] > scores[4]);
  const auto tokens = get<std::vector<std::string>>(metadata, "tokenizer.ggml.tokens");
  CHECK_EQ(tokens[8], "  ");  // user-defined tokens are matched in plain text
  CHECK_EQ(get<bool>(metadata, "tokenizer.ggml.add_space_prefix"), true);
  CHECK_EQ(get<bool>(metadata, "tokenizer.ggml.add_bos_token"), true);  // as the post-processor does
  CHECK_EQ(get<std::uint32_t>(metadata, "tokenizer.ggml.unknown_token_id"), 0u);
}

TEST("a Gemma tokenizer gets no space in front, a Metaspace one by its scheme") {
  const std::string gemma = R"({"type":"Replace","pattern":{"String":" "},"content":"▁"})";
  const std::string split = R"({"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false})";
  CHECK_EQ(parse_tokenizer_json(pieces(gemma, split)).space_prefix, false);
  const auto metaspace = [](const std::string& scheme) {
    return pieces("null", R"({"type":"Metaspace","replacement":"▁","prepend_scheme":")" + scheme + R"(","split":false})");
  };
  CHECK_EQ(parse_tokenizer_json(metaspace("first")).space_prefix, true);
  CHECK_EQ(parse_tokenizer_json(metaspace("never")).space_prefix, false);
  CHECK_THROWS(corrupt, parse_tokenizer_json(metaspace("sometimes")));
  CHECK_THROWS(unsupported, parse_tokenizer_json(pieces("null")));
  CHECK_THROWS(unsupported, parse_tokenizer_json(pieces(R"({"type":"NFKC"})")));
}

TEST("chat_template.jinja comes before tokenizer_config.json, and named templates keep their names") {
  const Json config = {{"chat_template", {{{"name", "default"}, {"template", "D"}}, {{"name", "tool_use"}, {"template", "T"}}}}};
  const GgufMetadata named = export_tokenizer(bpe(kGpt2), 6, config);
  CHECK_EQ(get<std::string>(named, "tokenizer.chat_template"), "D");
  CHECK_EQ(get<std::string>(named, "tokenizer.chat_template.tool_use"), "T");
  CHECK(get<std::vector<std::string>>(named, "tokenizer.chat_templates") == std::vector<std::string>{"tool_use"});
  const GgufMetadata file = export_tokenizer(bpe(kGpt2), 6, config, Json::object(), "J");
  CHECK_EQ(get<std::string>(file, "tokenizer.chat_template"), "J");
  CHECK(find(file, "tokenizer.chat_template.tool_use") == nullptr);
}

TEST("a token beyond the model's vocabulary is refused") { CHECK_THROWS(unsupported, export_tokenizer(bpe(kGpt2), 5)); }

TEST("malformed tokenizers are refused") {
  const auto with_model = [](const std::string& model) { return R"({"pre_tokenizer":)" + kGpt2 + R"(,"model":)" + model + "}"; };
  for (const char* model : {R"({})", R"({"type":"BPE"})", R"({"type":"BPE","vocab":{},"merges":[]})", R"({"type":"BPE","vocab":[],"merges":[]})",
                            R"({"type":"BPE","vocab":{"a":-1},"merges":[]})", R"({"type":"BPE","vocab":{"a":0.5},"merges":[]})",
                            R"({"type":"BPE","vocab":{"a":0,"b":0},"merges":[]})", R"({"type":"BPE","vocab":{"a":16777216},"merges":[]})",
                            R"({"type":"BPE","vocab":{"a":0,"a":1},"merges":[]})", R"({"type":"BPE","vocab":{"a":0}})",
                            R"({"type":"BPE","vocab":{"a":0},"merges":["a"]})", R"({"type":"BPE","vocab":{"a":0},"merges":["a b c"]})",
                            R"({"type":"BPE","vocab":{"a":0},"merges":[["a"]]})", R"({"type":"BPE","vocab":{"a":0},"merges":[["a",1]]})",
                            R"({"type":"BPE","vocab":{"a":0},"merges":[["","a"]]})", R"({"type":1,"vocab":{"a":0},"merges":[]})"})
    CHECK_THROWS(corrupt, parse_tokenizer_json(with_model(model)));
  CHECK_THROWS(unsupported, parse_tokenizer_json(with_model(R"({"type":"Unigram","vocab":[]})")));
  CHECK_THROWS(corrupt, parse_tokenizer_json("[]"));
  CHECK_THROWS(corrupt, parse_tokenizer_json(bpe(kGpt2, "null", "", R"([{"id":0,"content":"b"}])")));   // another token has that id
  CHECK_THROWS(corrupt, parse_tokenizer_json(bpe(kGpt2, "null", "", R"([{"id":9,"content":"a"}])")));   // and that text
  CHECK_THROWS(corrupt, parse_tokenizer_json(bpe(kGpt2, "null", "", R"([{"id":-1,"content":"c"}])")));
  CHECK_THROWS(corrupt, parse_tokenizer_json(bpe(kGpt2, "null", "", R"({"a":1})")));
  CHECK_THROWS(corrupt, parse_tokenizer_json(bpe(kGpt2, "[1]")));
}

TEST("real tokenizers keep every token, merge and role") {
  const std::filesystem::path root = test::shared_dir() / "data" / "tokenizers";
  for (const char* name : {"qwen2.5", "qwen3", "deepseek-r1-distill-qwen"}) {
    GgufMetadata metadata;
    CHECK_EQ(add_folder_tokenizer(root / name, Json::object(), 151936, metadata), "gpt2");
    CHECK_EQ(get<std::string>(metadata, "tokenizer.ggml.pre"), "qwen2");
    CHECK_EQ(get<std::vector<std::string>>(metadata, "tokenizer.ggml.tokens").size(), 151936u);
    CHECK_EQ(get<std::vector<std::string>>(metadata, "tokenizer.ggml.merges").size(), 151387u);
    CHECK(find(metadata, "tokenizer.chat_template") != nullptr);
    const bool deepseek = std::string_view(name).starts_with("deepseek");
    CHECK_EQ(get<bool>(metadata, "tokenizer.ggml.add_bos_token"), deepseek);
    CHECK_EQ(get<std::uint32_t>(metadata, "tokenizer.ggml.eos_token_id"), deepseek ? 151643u : 151645u);
  }
}

}  // namespace engine
