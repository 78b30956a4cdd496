#include "formats/gguf_blocks.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/test.h"
#include "formats/safetensors.h"

namespace engine {
namespace {

constexpr std::array kBlockTypes = {GgmlType::q4_0, GgmlType::q5_0, GgmlType::q8_0, GgmlType::q4_k, GgmlType::q6_k};

struct Fixture {
  ThreadPool pool{2};
  Exec ex = make_exec(pool, Compute::f32);
  SafetensorsFile golden{std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/gguf/blocks.safetensors"};

  std::vector<float> floats(const std::string& name) const {
    const TensorView& tensor = golden.at(name);
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
    return values;
  }
  std::vector<std::uint8_t> quantize(GgmlType type, const std::vector<float>& values) {
    const GgmlLayout layout = ggml_layout(type);
    std::vector<std::uint8_t> blocks(values.size() / static_cast<std::size_t>(layout.values) * static_cast<std::size_t>(layout.bytes));
    ggml_quantize(ex, type, values.data(), static_cast<std::int64_t>(values.size()), blocks.data());
    return blocks;
  }
  std::vector<float> round_trip(GgmlType type, const std::vector<float>& values) {
    const auto blocks = quantize(type, values);
    std::vector<float> back(values.size());
    ggml_dequantize(ex, type, blocks.data(), static_cast<std::int64_t>(values.size()), back.data());
    return back;
  }
};

// Root mean square error of one row of 512.
double row_error(const std::vector<float>& a, const std::vector<float>& b, std::size_t row) {
  double sum = 0;
  for (std::size_t i = row * 512; i < (row + 1) * 512; ++i) sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
  return std::sqrt(sum / 512);
}

}  // namespace

TEST("q4_0, q5_0 and q8_0 blocks equal the gguf package's byte for byte") {
  Fixture f;
  const auto weights = f.floats("weights");
  for (const GgmlType type : {GgmlType::q4_0, GgmlType::q5_0, GgmlType::q8_0}) {
    const auto blocks = f.quantize(type, weights);
    const TensorView& wanted = f.golden.at(std::string(ggml_name(type)) + ".blocks");
    CHECK_EQ(static_cast<std::int64_t>(blocks.size()), wanted.bytes);
    CHECK(std::memcmp(blocks.data(), wanted.data, blocks.size()) == 0);
  }
}

TEST("blocks of every type are read as the gguf package reads them, bit for bit") {
  Fixture f;
  for (const GgmlType type : kBlockTypes) {
    const TensorView& blocks = f.golden.at(std::string(ggml_name(type)) + ".random");
    const auto wanted = f.floats(std::string(ggml_name(type)) + ".values");
    std::vector<float> values(wanted.size());
    ggml_dequantize(f.ex, type, blocks.data, static_cast<std::int64_t>(values.size()), values.data());
    CHECK(std::memcmp(values.data(), wanted.data(), values.size() * sizeof(float)) == 0);
  }
}

// The scales of a super-block are integers under one f16: what that costs the search must win back on weights like a model's.
TEST("q4_k and q6_k lose less than plain rounding with exact scales on weights like a model's") {
  Fixture f;
  const auto weights = f.floats("weights");
  for (const GgmlType type : {GgmlType::q4_k, GgmlType::q6_k}) {
    const auto back = f.round_trip(type, weights), plain = f.floats(std::string(ggml_name(type)) + ".rounded");
    for (const std::size_t normal_row : {0u, 8u}) CHECK(row_error(back, weights, normal_row) < row_error(plain, weights, normal_row));
  }
}

TEST("a row of zeros and a row of one value survive every type") {
  Fixture f;
  const auto weights = f.floats("weights");
  for (const GgmlType type : kBlockTypes) {
    const auto back = f.round_trip(type, weights);
    for (std::size_t i = 4 * 512; i < 5 * 512; ++i) CHECK_EQ(back[i], 0.0f);
    for (std::size_t i = 7 * 512; i < 8 * 512; ++i) CHECK_CLOSE(back[i], 0.75, 0.75 / 512);  // f16 and integer scales
  }
}

TEST("weights too small for an f16 scale become zeros") {
  Fixture f;
  std::vector<float> values(256);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 3 == 0 ? 0.0f : (i % 2 == 0 ? 1e-38f : -3e-39f);
  for (const GgmlType type : kBlockTypes)
    for (const float value : f.round_trip(type, values)) CHECK_EQ(value, 0.0f);
}

TEST("f16 and f32 tensors hold their values") {
  Fixture f;
  const std::vector<float> values = {0.0f, -1.5f, 65504.0f, 1.0f / 1024, 3.0f};
  CHECK(f.round_trip(GgmlType::f32, values) == values);
  CHECK(f.round_trip(GgmlType::f16, values) == values);
}

TEST("a weight that is not finite or too large for the type is refused") {
  Fixture f;
  std::vector<float> values(256, 0.5f);
  values[77] = std::numeric_limits<float>::quiet_NaN();
  for (const GgmlType type : kBlockTypes) CHECK_THROWS(corrupt, f.quantize(type, values));
  values[77] = 70000.0f;
  CHECK_THROWS(unsupported, f.quantize(GgmlType::f16, values));
  CHECK_THROWS(unsupported, f.quantize(GgmlType::q4_k, values));
  values[77] = 70000.0f * 8;
  CHECK_THROWS(unsupported, f.quantize(GgmlType::q4_0, values));
}

TEST("values that fill no whole block are refused") {
  Fixture f;
  CHECK_THROWS(invalid, f.quantize(GgmlType::q8_0, std::vector<float>(33)));
  CHECK_THROWS(invalid, f.quantize(GgmlType::q4_k, std::vector<float>(32)));
}

TEST("super-blocks are byte for byte those of ggml's reference quantizers") {
  Fixture f;
  const SafetensorsFile golden(std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/gguf/k_quants.safetensors");
  const TensorView& stored = golden.at("values");
  std::vector<float> values(static_cast<std::size_t>(stored.elements()));
  to_f32(stored.dtype, stored.data, stored.elements(), values.data());
  for (const GgmlType type : {GgmlType::q4_k, GgmlType::q6_k}) {
    const TensorView& wanted = golden.at(std::string(ggml_name(type)));
    const std::vector<std::uint8_t> blocks = f.quantize(type, values);
    CHECK_EQ(blocks.size(), wanted.bytes);
    CHECK(std::memcmp(blocks.data(), wanted.data, blocks.size()) == 0);
  }
}

}  // namespace engine
