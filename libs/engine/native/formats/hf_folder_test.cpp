#include "formats/hf_folder.h"

#include <fstream>

#include "core/staged_output.h"
#include "core/test.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

void write_shard(const fs::path& path, const std::vector<std::string>& names) {
  const float value = 1;
  std::vector<NamedTensor> tensors;
  for (const std::string& name : names) tensors.push_back({{name, Dtype::f32, {1}}, &value});
  write_safetensors(path, tensors, {});
}

// Two shards, a in one and b, c in two, with this index.
void write_sharded(const fs::path& dir, const std::string& weight_map) {
  fs::create_directories(dir);
  write_file(dir / "config.json", "{}");
  write_shard(dir / "one.safetensors", {"a"});
  write_shard(dir / "two.safetensors", {"b", "c"});
  write_file(dir / "model.safetensors.index.json", R"({"metadata":{"total_size":12},"weight_map":)" + weight_map + "}");
}

}  // namespace

TEST("a sharded folder gives the tensors of all shards") {
  const test::TempDir temp;
  write_sharded(temp / "m", R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  const HfFolder folder(temp / "m");
  CHECK_EQ(folder.tensors().size(), 3u);
  CHECK_EQ(folder.weight_bytes(), 12);
  CHECK_EQ(folder.at("c").name, std::string("c"));
  CHECK(folder.find("d") == nullptr);
  CHECK_THROWS(corrupt, folder.at("d"));
}

TEST("an index that does not name exactly what the shards hold is refused") {
  struct Case {
    const char* why;
    const char* weight_map;
    Code code;
  };
  int number = 0;
  const test::TempDir temp;
  for (const Case& bad : {
           Case{"a tensor is not named", R"({"a":"one.safetensors","b":"two.safetensors"})", Code::corrupt},
           Case{"a named tensor is nowhere", R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors","d":"two.safetensors"})", Code::corrupt},
           Case{"a tensor is in the other shard", R"({"a":"two.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a shard is missing", R"({"a":"zero.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::io},
           Case{"a shard lies outside", R"({"a":"../m0/one.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a shard has an absolute path", R"({"a":"/one.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a shard's name holds a NUL", R"({"a":"one\u0000.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a shard is a pickle", R"({"a":"one.bin","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a shard is a number", R"({"a":1,"b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"a tensor is named twice", R"({"a":"one.safetensors","a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})", Code::corrupt},
           Case{"the map is empty", "{}", Code::corrupt},
           Case{"the map is a list", "[]", Code::corrupt},
       }) {
    const fs::path dir = temp / text("m", number++);
    write_sharded(dir, bad.weight_map);
    std::string seen;
    if (!test::throws_code(bad.code, [&] { HfFolder{dir}; }, seen)) test::report_failure(__FILE__, __LINE__, text(bad.why, ": ", seen));
  }
}

TEST("a tensor in two shards is refused") {
  const test::TempDir temp;
  write_sharded(temp / "m", R"({"a":"one.safetensors","b":"two.safetensors"})");
  fs::remove(temp / "m/two.safetensors");
  write_shard(temp / "m/two.safetensors", {"a", "b"});
  CHECK_THROWS(corrupt, HfFolder(temp / "m"));
}

TEST("a single file beside an index that does not name it is refused as ambiguous") {
  const test::TempDir temp;
  write_sharded(temp / "m", R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  write_shard(temp / "m/model.safetensors", {"a"});
  CHECK_THROWS(corrupt, HfFolder(temp / "m"));
}

TEST("a folder without weights is refused with the reason, and a pickle is never opened") {
  const test::TempDir temp;
  CHECK_THROWS(io, HfFolder(temp / "absent"));
  fs::create_directories(temp / "m");
  CHECK_THROWS(io, HfFolder(temp / "m"));
  write_file(temp / "m/config.json", "{}");
  CHECK_THROWS(io, HfFolder(temp / "m"));
  CHECK_EQ(std::system(("mkfifo " + (temp / "m/pytorch_model.bin").string()).c_str()), 0);  // opening it would wait for ever
  CHECK_THROWS(unsupported, HfFolder(temp / "m"));
}

TEST("a config.json that is no object is refused") {
  const test::TempDir temp;
  fs::create_directories(temp / "m");
  write_shard(temp / "m/model.safetensors", {"a"});
  write_file(temp / "m/config.json", "[]");
  CHECK_THROWS(corrupt, HfFolder(temp / "m"));
}

}  // namespace engine
