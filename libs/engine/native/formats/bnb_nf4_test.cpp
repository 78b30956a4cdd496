#include "formats/bnb_nf4.h"

#include <cmath>
#include <map>

#include "core/code_tables.h"
#include "core/staged_output.h"
#include "core/test.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

const std::string kWeight = "model.layers.0.mlp.up_proj.weight";

// The parts of a doubly quantized 2 × 128 matrix, to be spoiled one at a time.
struct Parts {
  std::map<std::string, std::pair<TensorSpec, std::vector<std::uint8_t>>> tensors;

  template <class T>
  void put(const std::string& suffix, Dtype dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    tensors[suffix] = {{kWeight + suffix, dtype, std::move(shape)}, {bytes, bytes + values.size() * sizeof(T)}};
  }
  void put_state(const std::string& json) {
    put<char>(".quant_state.bitsandbytes__nf4", Dtype::u8, {static_cast<std::int64_t>(json.size())}, {json.begin(), json.end()});
  }
  Parts() {
    put<std::uint8_t>("", Dtype::u8, {128, 1}, std::vector<std::uint8_t>(128, 0x77));
    put<std::uint8_t>(".absmax", Dtype::u8, {4}, {0, 1, 2, 255});
    put<float>(".quant_map", Dtype::f32, {16}, {kNf4.begin(), kNf4.end()});
    put<float>(".nested_absmax", Dtype::f32, {1}, {0.5f});
    put<float>(".nested_quant_map", Dtype::f32, {256}, {kDynamicSigned.begin(), kDynamicSigned.end()});
    put_state(nf4_quant_state(2, 128, Dtype::bf16, 0.25f));
  }
  void find(const fs::path& dir) const {
    fs::remove_all(dir);
    fs::create_directories(dir);
    std::vector<NamedTensor> named;
    for (const auto& [suffix, tensor] : tensors) named.push_back({tensor.first, tensor.second.data()});
    write_safetensors(dir / "model.safetensors", named, {});
    write_file(dir / "config.json", "{}");
    const HfFolder folder(dir);
    const auto stored = find_nf4(folder, kWeight);
    CHECK(stored && stored->rows == 2 && stored->cols == 128 && stored->double_quant && stored->nested.offset == 0.25f);
  }
};

}  // namespace

TEST("the quant_state is the JSON that bitsandbytes writes") {
  CHECK_EQ(nf4_quant_state(4, 64, Dtype::bf16, {}), std::string(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]})"));
  CHECK_EQ(nf4_quant_state(4, 64, Dtype::f16, 0.20347341895103455f),
           std::string(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [4, 64], "nested_blocksize": 256, )"
                       R"("nested_dtype": "float32", "nested_offset": 0.20347341895103455})"));
}

TEST("a stored matrix whose parts do not fit each other is refused") {
  const test::TempDir temp;
  const fs::path dir = temp / "m";
  Parts().find(dir);
  const auto spoiled = [&](auto change) {
    Parts parts;
    change(parts);
    parts.find(dir);
  };
  const auto state = [&](const char* json) { return [json](Parts& p) { p.put_state(json); }; };
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(""); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(".absmax"); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(".quant_map"); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(".nested_absmax"); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(".nested_quant_map"); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.tensors.erase(".quant_state.bitsandbytes__nf4"); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<std::uint8_t>("", Dtype::u8, {127, 1}, std::vector<std::uint8_t>(127)); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<float>("", Dtype::f32, {32, 1}, std::vector<float>(32)); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<std::uint8_t>(".absmax", Dtype::u8, {3}, {0, 1, 2}); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<float>(".absmax", Dtype::f32, {4}, {0, 1, 2, 3}); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<float>(".nested_absmax", Dtype::f32, {1}, {NAN}); }));
  CHECK_THROWS(corrupt, spoiled([](Parts& p) { p.put<float>(".nested_absmax", Dtype::f32, {2}, {1, 1}); }));
  CHECK_THROWS(unsupported, spoiled([](Parts& p) { p.put<float>(".quant_map", Dtype::f32, {16}, std::vector<float>(16)); }));
  CHECK_THROWS(corrupt, spoiled(state("{")));
  CHECK_THROWS(corrupt, spoiled(state("{}")));
  CHECK_THROWS(unsupported, spoiled(state(R"({"quant_type":"fp4","blocksize":64,"dtype":"bfloat16","shape":[2,128]})")));
  CHECK_THROWS(unsupported, spoiled(state(R"({"quant_type":"nf4","blocksize":128,"dtype":"bfloat16","shape":[2,128]})")));
  CHECK_THROWS(unsupported, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"int8","shape":[2,128]})")));
  CHECK_THROWS(corrupt, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,-128]})")));
  CHECK_THROWS(corrupt, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,128,1]})")));
  CHECK_THROWS(corrupt, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[9223372036854775807,9223372036854775807]})")));
  CHECK_THROWS(corrupt, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[4,128]})")));
  CHECK_THROWS(unsupported, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,128],"nested_blocksize":512,"nested_dtype":"float32","nested_offset":0.25})")));
  CHECK_THROWS(corrupt, spoiled(state(R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,128],"nested_blocksize":256,"nested_dtype":"float32","nested_offset":1e300})")));
}

}  // namespace engine
