#include "formats/safetensors.h"

#include <cstring>
#include <fstream>

#include "core/staged_output.h"
#include "core/test.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

// A file from its header text and its data, with a truthful length unless another is given.
std::vector<std::uint8_t> file_of(const std::string& header, std::size_t data_bytes, std::uint64_t claimed = ~std::uint64_t{0}) {
  std::vector<std::uint8_t> file(8 + header.size() + data_bytes);
  const std::uint64_t length = claimed == ~std::uint64_t{0} ? header.size() : claimed;
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  return file;
}
SafetensorsContents parse(const std::string& header, std::size_t data_bytes) {
  const auto file = file_of(header, data_bytes);
  return parse_safetensors(file, "test");
}
std::string one(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

struct Hostile {
  const char* why;
  std::string header;
  std::size_t data_bytes;
};

const std::vector<Hostile>& hostile_headers() {
  static const std::vector<Hostile> cases = {
      {"an empty header", "", 0},
      {"an array instead of an object", "[]", 0},
      {"a string instead of an object", "\"{}\"", 0},
      {"text after the object", "{}{}", 0},
      {"leading space", " {}", 0},
      {"a byte-order mark", "\xEF\xBB\xBF{}", 0},
      {"NUL padding", std::string("{}\0\0", 4), 0},
      {"a truncated object", "{" + one("a", "F32", "[1]", "[0,4]"), 4},
      {"invalid UTF-8 in a name", "{" + one("a\xff", "F32", "[1]", "[0,4]") + "}", 4},
      {"an overlong UTF-8 sequence", "{" + one("a\xc0\xaf", "F32", "[1]", "[0,4]") + "}", 4},
      {"a lone surrogate escape", "{" + one("\\ud800", "F32", "[1]", "[0,4]") + "}", 4},
      {"deep nesting", "{\"a\":" + std::string(100'000, '['), 0},
      {"deep objects", [] { std::string s; for (int i = 0; i < 10'000; ++i) s += "{\"a\":"; return s; }(), 0},
      {"a duplicate name", "{" + one("a", "F32", "[1]", "[0,4]") + "," + one("a", "F32", "[1]", "[4,8]") + "}", 8},
      {"a duplicate name behind an escape", "{" + one("a", "F32", "[1]", "[0,4]") + "," + one("\\u0061", "F32", "[1]", "[4,8]") + "}", 8},
      {"a duplicate field", R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4},
      {"duplicate metadata", R"({"__metadata__":{"k":"1","k":"2"}})", 0},
      {"two metadata objects", R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"metadata that is not text", R"({"__metadata__":{"k":1}})", 0},
      {"metadata that nests", R"({"__metadata__":{"k":{"l":"1"}}})", 0},
      {"an unknown field", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1}})", 4},
      {"a missing dtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4},
      {"a missing shape", R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4},
      {"missing offsets", R"({"a":{"dtype":"F32","shape":[1]}})", 4},
      {"an entry that is a number", R"({"a":1})", 0},
      {"an entry that is null", R"({"a":null})", 0},
      {"an entry that is an array", R"({"a":[]})", 0},
      {"a dtype that is a number", R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4},
      {"an unknown dtype", "{" + one("a", "F33", "[1]", "[0,4]") + "}", 4},
      {"an empty dtype", "{" + one("a", "", "[1]", "[0,4]") + "}", 4},
      {"a lower-case dtype", "{" + one("a", "f32", "[1]", "[0,4]") + "}", 4},
      {"a negative dimension", "{" + one("a", "F32", "[-1]", "[0,4]") + "}", 4},
      {"a fractional dimension", "{" + one("a", "F32", "[1.0]", "[0,4]") + "}", 4},
      {"an exponent", "{" + one("a", "F32", "[1e0]", "[0,4]") + "}", 4},
      {"a dimension beyond 2^63", "{" + one("a", "F32", "[9223372036854775808]", "[0,4]") + "}", 4},
      {"a dimension beyond 2^64", "{" + one("a", "F32", "[18446744073709551617]", "[0,4]") + "}", 4},
      {"a shape whose product overflows", "{" + one("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0},
      {"a shape whose bytes overflow", "{" + one("a", "F32", "[4611686018427387904]", "[0,0]") + "}", 0},
      {"a shape that overflows before its zero", "{" + one("a", "F32", "[9223372036854775807,3,0]", "[0,0]") + "}", 0},
      {"more dimensions than any tensor has", "{" + one("a", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4},
      {"a nested shape", "{" + one("a", "F32", "[[1]]", "[0,4]") + "}", 4},
      {"a shape with text", "{" + one("a", "F32", "[\"1\"]", "[0,4]") + "}", 4},
      {"one offset", "{" + one("a", "F32", "[1]", "[0]") + "}", 4},
      {"three offsets", "{" + one("a", "F32", "[1]", "[0,4,4]") + "}", 4},
      {"a negative offset", "{" + one("a", "F32", "[1]", "[-4,0]") + "}", 4},
      {"an end before the begin", "{" + one("a", "F32", "[1]", "[4,0]") + "}", 4},
      {"an end past the file", "{" + one("a", "F32", "[2]", "[0,8]") + "}", 4},
      {"an end near 2^63", "{" + one("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") + "}", 4},
      {"a span that differs from the shape", "{" + one("a", "F32", "[2]", "[0,4]") + "}", 4},
      {"an overlap", "{" + one("a", "F32", "[2]", "[0,8]") + "," + one("b", "F32", "[2]", "[4,12]") + "}", 12},
      {"the same bytes twice", "{" + one("a", "F32", "[1]", "[0,4]") + "," + one("b", "F32", "[1]", "[0,4]") + "}", 4},
      {"a gap", "{" + one("a", "F32", "[1]", "[0,4]") + "," + one("b", "F32", "[1]", "[8,12]") + "}", 12},
      {"a gap before the first", "{" + one("a", "F32", "[1]", "[4,8]") + "}", 8},
      {"offsets out of order", "{" + one("b", "F32", "[1]", "[4,8]") + "," + one("a", "F32", "[1]", "[0,4]") + "}", 8},
      {"bytes after the last tensor", "{" + one("a", "F32", "[1]", "[0,4]") + "}", 5},
      {"data without tensors", "{}", 1},
      {"a scalar without its bytes", "{" + one("a", "F32", "[]", "[0,0]") + "}", 0},
      {"a name with a NUL", "{" + one("a\\u0000b", "F32", "[1]", "[0,4]") + "}", 4},
      {"a name with a slash", "{" + one("../a", "F32", "[1]", "[0,4]") + "}", 4},
      {"a name with a backslash", "{" + one("a\\\\b", "F32", "[1]", "[0,4]") + "}", 4},
      {"a name with a newline", "{" + one("a\\nb", "F32", "[1]", "[0,4]") + "}", 4},
      {"an empty name", "{" + one("", "F32", "[1]", "[0,4]") + "}", 4},
      {"a name of 5000 bytes", "{" + one(std::string(5000, 'n'), "F32", "[1]", "[0,4]") + "}", 4},
      {"a comment", "{/**/}", 0},
      {"NaN in a shape", "{" + one("a", "F32", "[NaN]", "[0,4]") + "}", 4},
  };
  return cases;
}

std::vector<fs::path> golden_files() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(test::shared_dir() / "golden"))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  return files;
}

}  // namespace

TEST("every hostile header is refused as corrupt") {
  for (const Hostile& hostile : hostile_headers()) {
    std::string seen;
    if (!test::throws_code(Code::corrupt, [&] { parse(hostile.header, hostile.data_bytes); }, seen))
      test::report_failure(__FILE__, __LINE__, text(hostile.why, ": ", seen));
  }
}

TEST("a length that is truncated, past the file or over the limit is refused before anything is read") {
  for (std::size_t bytes = 0; bytes < 8; ++bytes) CHECK_THROWS(corrupt, parse_safetensors(std::vector<std::uint8_t>(bytes), "test"));
  for (const std::uint64_t claimed : {std::uint64_t{3}, std::uint64_t{100'000'001}, std::uint64_t{1} << 63, ~std::uint64_t{1}, std::uint64_t{1}, std::uint64_t{0}})
    CHECK_THROWS(corrupt, parse_safetensors(file_of("{}", 0, claimed), "test"));
}

TEST("a well-formed file gives its tensors, metadata and bytes") {
  auto file = file_of(R"({"__metadata__":{"format":"pt"},)" + one("a.weight", "BF16", "[2,1]", "[0,4]") + "," + one("s", "U8", "[]", "[4,5]") + "," +
                          one("empty", "F32", "[0,7]", "[5,5]") + "}   ",
                      5);
  file.back() = 42;
  const SafetensorsContents contents = parse_safetensors(file, "test");
  CHECK_EQ(contents.tensors.size(), 3u);
  CHECK_EQ(contents.metadata.at("format"), std::string("pt"));
  CHECK_EQ(contents.tensors[0].elements(), 2);
  CHECK(contents.tensors[0].dtype == Dtype::bf16);
  CHECK_EQ(int{*contents.tensors[1].data}, 42);
  CHECK_EQ(contents.tensors[2].elements(), 0);
}

TEST("a missing file, a folder and a FIFO are io errors") {
  const test::TempDir temp;
  CHECK_THROWS(io, SafetensorsFile(temp / "absent"));
  CHECK_THROWS(io, SafetensorsFile(temp.path()));
  CHECK_EQ(std::system(("mkfifo " + (temp / "fifo").string()).c_str()), 0);
  CHECK_THROWS(io, SafetensorsFile(temp / "fifo"));
  write_file(temp / "empty", "");
  CHECK_THROWS(corrupt, SafetensorsFile(temp / "empty"));
}

TEST("what the writer writes the reader reads, in pieces and in any order") {
  const test::TempDir temp;
  const std::vector<float> values = {1, 2, 3, 4};
  const std::vector<std::uint8_t> bytes = {9, 8, 7};
  SafetensorsWriter writer(temp / "f", {{"u", Dtype::u8, {3}}, {"b", Dtype::f32, {2, 2}}, {"none", Dtype::f32, {0}}}, {{"k", "välue"}});
  writer.append("u", bytes.data(), 2);
  writer.append("b", values.data(), 16);
  CHECK_THROWS(invalid, writer.append("u", bytes.data(), 2));
  CHECK_THROWS(invalid, writer.append("absent", bytes.data(), 1));
  CHECK_THROWS(invalid, writer.finish());
  writer.append("u", bytes.data() + 2, 1);
  writer.finish();
  const SafetensorsFile file(temp / "f");
  CHECK_EQ(file.tensors()[0].name, std::string("b"));  // widest dtype first: every tensor is aligned
  CHECK(std::memcmp(file.at("b").data, values.data(), 16) == 0);
  CHECK(std::memcmp(file.at("u").data, bytes.data(), 3) == 0);
  CHECK_EQ(file.metadata().at("k"), std::string("välue"));
  for (const TensorView& tensor : file.tensors()) CHECK(tensor.is_aligned());
  CHECK(file.find("absent") == nullptr);
  CHECK_THROWS(corrupt, file.at("absent"));
}

TEST("a late tensor may be shorter than announced and follows the others") {
  const test::TempDir temp;
  SafetensorsWriter writer(temp / "f", {{"a", Dtype::u8, {1}}}, {}, {{"z", 1000}, {"y", 1000}});
  const char byte = 'a';
  writer.append("a", &byte, 1);
  writer.append_late("z", "zz");
  CHECK_THROWS(invalid, writer.finish());
  CHECK_THROWS(corrupt, SafetensorsFile(temp / "f"));  // unfinished
  writer.append_late("y", "yyy");
  CHECK_THROWS(invalid, writer.append_late("y", "again"));
  writer.finish();
  const SafetensorsFile file(temp / "f");
  CHECK_EQ(file.tensors().size(), 3u);
  CHECK(std::memcmp(file.at("z").data, "zz", 2) == 0);
  CHECK(std::memcmp(file.at("y").data, "yyy", 3) == 0);
  CHECK_EQ(file.at("y").bytes, 3);
}

TEST("the writer refuses what the reader would refuse") {
  const test::TempDir temp;
  const auto write = [&](const char* name, std::vector<TensorSpec> specs) { SafetensorsWriter(temp / name, std::move(specs), {}); };
  CHECK_THROWS(invalid, write("1", {{"", Dtype::f32, {1}}}));
  CHECK_THROWS(invalid, write("2", {{"__metadata__", Dtype::f32, {1}}}));
  CHECK_THROWS(invalid, write("3", {{"a", Dtype::f32, {1}}, {"a", Dtype::f32, {1}}}));
  CHECK_THROWS(invalid, write("4", {{"a", Dtype::nf4, {2}}}));
  CHECK_THROWS(corrupt, write("5", {{"a/b", Dtype::f32, {1}}}));
  CHECK_THROWS(corrupt, write("6", {{"a", Dtype::f32, {-1}}}));
  CHECK_THROWS(invalid, write("7", {{"a\xff", Dtype::f32, {1}}}));
  CHECK(fs::is_empty(temp.path()));
}

TEST("golden files open, and writing them again gives the same bytes") {
  const test::TempDir temp;
  for (const fs::path& path : golden_files()) {
    const SafetensorsFile file(path);
    CHECK(!file.tensors().empty());
    std::vector<NamedTensor> tensors;
    for (const TensorView& tensor : file.tensors()) tensors.push_back({{tensor.name, tensor.dtype, tensor.shape}, tensor.data});
    write_safetensors(temp / "copy", tensors, file.metadata());
    const MappedFile copy(temp / "copy");
    const auto a = file.file().bytes(), b = copy.bytes();
    CHECK(a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0);
  }
}

TEST("every truncation of a file is refused") {
  std::vector<std::uint8_t> file = file_of("{" + one("a", "F32", "[2]", "[0,8]") + "," + one("b", "U8", "[3]", "[8,11]") + "}", 11);
  CHECK_EQ(parse_safetensors(file, "test").tensors.size(), 2u);
  while (!file.empty()) {
    file.pop_back();
    CHECK_THROWS(corrupt, parse_safetensors(file, "test"));
  }
}

// A fixed-seed stand-in for a fuzzer: whatever 200,000 mutations make of a file, it is read or refused as corrupt, and what is read lies inside it.
TEST("mutated files are read within bounds or refused as corrupt") {
  const std::vector<std::uint8_t> seed = file_of(
      R"({"__metadata__":{"format":"pt"},)" + one("a.weight", "F32", "[2,3]", "[0,24]") + "," + one("b", "BF16", "[4]", "[24,32]") + "}", 32);
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  const auto next = [&] { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; };
  const std::string alphabet = "{}[]\":,0123456789-.eE\\u/nulltrefasFBI ";
  int read = 0, refused = 0;
  for (int round = 0; round < 200'000; ++round) {
    std::vector<std::uint8_t> file = seed;
    for (std::uint64_t edits = 1 + next() % 3; edits > 0 && !file.empty(); --edits) {
      const std::size_t at = next() % file.size();
      switch (next() % 5) {
        case 0: file[at] = static_cast<std::uint8_t>(next()); break;
        case 1: file[at] = static_cast<std::uint8_t>(alphabet[next() % alphabet.size()]); break;
        case 2: file.erase(file.begin() + static_cast<std::ptrdiff_t>(at)); break;
        case 3: file.insert(file.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(alphabet[next() % alphabet.size()])); break;
        default: file.resize(at); break;
      }
    }
    try {
      const SafetensorsContents contents = parse_safetensors(file, "test");
      ++read;
      for (const TensorView& tensor : contents.tensors)
        if (tensor.data < file.data() || tensor.data + tensor.bytes > file.data() + file.size() || tensor.bytes != tensor.elements() * dtype_size(tensor.dtype))
          CHECK(!"a tensor leaves its file");
    } catch (const Error& error) {
      ++refused;
      if (error.code() != Code::corrupt) CHECK_EQ(std::string(code_name(error.code())), std::string("corrupt"));
    }
  }
  CHECK(read > 1000);
  CHECK(refused > 100'000);
}

}  // namespace engine
