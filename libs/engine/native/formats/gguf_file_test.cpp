#include "formats/gguf_file.h"

#include <cstring>

#include "core/test.h"
#include "formats/gguf_writer.h"

namespace engine {
namespace {

std::vector<std::uint8_t> bytes_of(const std::filesystem::path& path) {
  const MappedFile file(path);
  return {file.bytes().begin(), file.bytes().end()};
}

// Every kind of entry, a tensor of five values (padded), one of blocks.
std::vector<std::uint8_t> small_file() {
  const test::TempDir dir;
  GgufWriter out(dir / "a.gguf",
                 {{"general.architecture", std::string("llama")},
                  {"u", std::uint32_t{7}},
                  {"i", std::int32_t{-7}},
                  {"l", std::uint64_t{1} << 40},
                  {"m", std::int64_t{-1} << 40},
                  {"f", 0.5f},
                  {"d", 0.25},
                  {"b", true},
                  {"is", std::vector<std::int32_t>{1, -2}},
                  {"fs", std::vector<float>{1.5f}},
                  {"ss", std::vector<std::string>{"", "\xE2\x96\x81"}}},
                 {{"five", GgmlType::f32, {5}}, {"blocks", GgmlType::q8_0, {2, 32}}});
  const std::vector<float> five = {1, 2, 3, 4, 5};
  out.append("five", five.data(), 8);
  out.append("five", five.data() + 2, 12);
  const std::vector<std::uint8_t> blocks(68, 3);
  out.append("blocks", blocks.data(), 68);
  out.set("d", 0.75);
  out.finish();
  return bytes_of(dir / "a.gguf");
}

struct Change {
  const char* what;
  std::size_t at;
  std::uint64_t value;
  std::size_t width;
};

}  // namespace

TEST("what the GGUF writer wrote the reader reads") {
  const auto file = small_file();
  const GgufContents contents = parse_gguf(file, "test");
  const auto get = [&]<class T>(const char* key, T) { return std::get<T>(contents.metadata.at(key)); };
  CHECK_EQ(contents.metadata.size(), 11u);
  CHECK_EQ(get("general.architecture", std::string()), "llama");
  CHECK_EQ(get("u", std::uint32_t{}), 7u);
  CHECK_EQ(get("i", std::int32_t{}), -7);
  CHECK_EQ(get("l", std::uint64_t{}), std::uint64_t{1} << 40);
  CHECK_EQ(get("m", std::int64_t{}), std::int64_t{-1} << 40);
  CHECK_EQ(get("f", 0.0f), 0.5f);
  CHECK_EQ(get("d", 0.0), 0.75);
  CHECK_EQ(get("b", false), true);
  CHECK(get("is", std::vector<std::int32_t>()) == (std::vector<std::int32_t>{1, -2}));
  CHECK(get("fs", std::vector<float>()) == std::vector<float>{1.5f});
  CHECK(get("ss", std::vector<std::string>()) == (std::vector<std::string>{"", "\xE2\x96\x81"}));
  CHECK_EQ(contents.tensors.size(), 2u);
  CHECK(contents.tensors[0].shape == std::vector<std::int64_t>{5});
  CHECK(contents.tensors[1].shape == (std::vector<std::int64_t>{2, 32}));
  CHECK_EQ(contents.tensors[1].bytes, 68);
  for (const GgufTensor& tensor : contents.tensors) CHECK_EQ((tensor.data - file.data()) % kGgufAlignment, 0);
  float third = 0;
  std::memcpy(&third, contents.tensors[0].data + 8, 4);
  CHECK_EQ(third, 3.0f);
  CHECK_EQ(file.size() % static_cast<std::size_t>(kGgufAlignment), 0u);
}

TEST("a GGUF file cut anywhere but in its last padding is refused") {
  const auto file = small_file();
  for (std::size_t length = 0; length + 28 < file.size(); ++length) CHECK_THROWS(corrupt, parse_gguf({file.data(), length}, "test"));
}

TEST("a GGUF header that lies is refused before anything is read or allocated for it") {
  const auto file = small_file();
  const auto find = [&](std::string_view text) {
    return static_cast<std::size_t>(std::search(file.begin(), file.end(), text.begin(), text.end()) - file.begin());
  };
  const std::size_t name = find("blocks");
  const std::vector<Change> changes = {{"another magic", 0, 0x46554746, 4},
                                       {"more tensors than bytes", 8, ~std::uint64_t{0}, 8},
                                       {"more entries than bytes", 16, std::uint64_t{1} << 62, 8},
                                       {"one entry too many", 16, 12, 8},
                                       {"one tensor too many", 8, 3, 8},
                                       {"a key longer than the file", 24, ~std::uint64_t{0}, 8},
                                       {"an unknown value type", 24 + 8 + 20, 13, 4},
                                       {"no dimension", name + 6, 0, 4},
                                       {"five dimensions", name + 6, 5, 4},
                                       {"a huge extent", name + 10, ~std::uint64_t{0}, 8},
                                       {"an overflowing size", name + 18, std::uint64_t{1} << 40, 8},
                                       {"a row of no whole block", name + 10, 31, 8},
                                       {"a misplaced tensor", name + 30, 64, 8},
                                       {"a tensor past the end", name + 18, 3, 8}};
  for (const Change& change : changes) {
    auto changed = file;
    std::memcpy(changed.data() + change.at, &change.value, change.width);
    std::string seen;
    if (!test::throws_code(Code::corrupt, [&] { parse_gguf(changed, "test"); }, seen))
      test::report_failure(__FILE__, __LINE__, text("with ", change.what, ": ", seen));
  }
}

TEST("a later GGUF version and an unknown tensor type are unsupported, and are named") {
  auto file = small_file();
  file[4] = 4;
  CHECK_THROWS(unsupported, parse_gguf(file, "test"));
  file[4] = 3;
  const std::string_view name = "blocks";
  const auto at = std::search(file.begin(), file.end(), name.begin(), name.end()) - file.begin();
  file[static_cast<std::size_t>(at) + 26] = 10;  // q2_K
  CHECK_THROWS(unsupported, parse_gguf(file, "test"));
}

TEST("the GGUF writer refuses what the format cannot hold") {
  const test::TempDir dir;
  const auto write = [&](std::vector<GgufTensorSpec> tensors, GgufMetadata metadata = {}) { GgufWriter(dir / "b.gguf", std::move(metadata), std::move(tensors)); };
  CHECK_THROWS(invalid, write({{std::string(64, 'x'), GgmlType::f32, {1}}}));
  CHECK_THROWS(invalid, write({{"a", GgmlType::f32, {1}}, {"a", GgmlType::f32, {1}}}));
  CHECK_THROWS(invalid, write({{"a", GgmlType::q8_0, {33}}}));
  CHECK_THROWS(invalid, write({{"a", GgmlType::f32, {1, 1, 1, 1, 1}}}));
  CHECK_THROWS(invalid, write({}, {{"k", true}, {"k", true}}));
  GgufWriter out(dir / "c.gguf", {{"k", 1.0f}}, {{"a", GgmlType::f32, {2}}});
  const float value = 1;
  out.append("a", &value, 4);
  CHECK_THROWS(invalid, out.finish());
  CHECK_THROWS(invalid, out.set("k", 1.0));
  CHECK_THROWS(invalid, out.set("other", 1.0f));
  const std::vector<float> more(2);
  CHECK_THROWS(invalid, out.append("a", more.data(), 8));
  CHECK_THROWS(invalid, out.append("b", more.data(), 4));
}

}  // namespace engine
