#include "ops/nf4.h"

#include <algorithm>
#include <cstring>

#include "core/code_tables.h"
#include "formats/safetensors.h"
#include "ops/dynamic8.h"
#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

std::vector<float> floats(const TensorView& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
  return values;
}

std::vector<std::uint8_t> bytes(const TensorView& tensor) { return {tensor.data, tensor.data + tensor.bytes}; }

}  // namespace

TEST("the sixteen codes are fixed points of quantization") {
  std::vector<float> w(64);
  for (std::size_t i = 0; i < 64; ++i) w[i] = kNf4[i % 16];
  for (const Isa isa : runnable_isas()) {
    std::vector<std::uint8_t> packed(32);
    float absmax = 0;
    quantize_nf4(exec(isa), w.data(), 64, packed.data(), &absmax);
    CHECK_EQ(absmax, 1.0f);
    std::vector<float> back(64);
    dequantize_nf4(packed.data(), {.absmax = &absmax}, 0, 64, back.data());
    CHECK(back == w);
  }
}

TEST("quantization errs by at most half a gap, and keeps the order of values") {
  float widest = 0;
  for (std::size_t i = 1; i < 16; ++i) widest = std::max(widest, (kNf4[i] - kNf4[i - 1]) / 2);
  const std::int64_t n = 6400;
  const auto w = random_values(n, 1, 0.02f);
  for (const Isa isa : runnable_isas()) {
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(nf4_bytes(n)));
    std::vector<float> absmax(static_cast<std::size_t>(nf4_blocks(n))), back(static_cast<std::size_t>(n));
    quantize_nf4(exec(isa), w.data(), n, packed.data(), absmax.data());
    dequantize_nf4(packed.data(), {.absmax = absmax.data()}, 0, n, back.data());
    for (std::size_t i = 0; i < back.size(); ++i) {
      CHECK(std::abs(back[i] - w[i]) <= widest * absmax[i / 64] * 1.0001f);
      if (i % 64 != 0 && w[i] < w[i - 1]) CHECK(back[i] <= back[i - 1]);
    }
  }
}

TEST("every instruction set quantizes and decodes to the same bits, whatever the length and offset") {
  for (const std::int64_t n : {0, 1, 63, 64, 65, 4097}) {
    const auto w = random_values(n, 7, 3.0f);
    std::vector<std::uint8_t> packed0(static_cast<std::size_t>(nf4_bytes(n)));
    std::vector<float> absmax0(static_cast<std::size_t>(nf4_blocks(n)));
    quantize_nf4(exec(Isa::scalar), w.data(), n, packed0.data(), absmax0.data());
    for (const Isa isa : runnable_isas()) {
      std::vector<std::uint8_t> packed(packed0.size());
      std::vector<float> absmax(absmax0.size());
      quantize_nf4(exec(isa), w.data(), n, packed.data(), absmax.data());
      CHECK(packed == packed0);
      CHECK(absmax == absmax0);
      Matrix view{Dtype::nf4, 1, n, packed.data(), {.absmax = absmax.data()}};
      for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, std::int64_t{64}, std::int64_t{70}, n / 2}) {
        if (first > n) continue;
        auto expected = poisoned(n - first), decoded = poisoned(n - first);
        dequantize_nf4(packed.data(), view.nf4, first, n - first, expected.data());
        decode_weight(isa, view, first, n - first, decoded.data());
        CHECK(expected.empty() || std::memcmp(expected.data(), decoded.data(), expected.size() * 4) == 0);
      }
    }
  }
}

TEST("a block of zeros decodes to zeros and a value that is not finite is refused") {
  std::vector<float> w(130, 0.0f), back(130);
  std::vector<std::uint8_t> packed(65);
  std::vector<float> absmax(3);
  for (const Isa isa : runnable_isas()) {
    quantize_nf4(exec(isa), w.data(), 130, packed.data(), absmax.data());
    dequantize_nf4(packed.data(), {.absmax = absmax.data()}, 0, 130, back.data());
    CHECK(std::all_of(back.begin(), back.end(), [](float x) { return x == 0.0f; }));
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      auto broken = w;
      broken[100] = bad;
      CHECK_THROWS(invalid, quantize_nf4(exec(isa), broken.data(), 130, packed.data(), absmax.data()));
    }
  }
}

TEST("every entry of the dynamic maps is its own nearest code, and midpoints are ordered") {
  for (const auto* map : {&kDynamicSigned, &kDynamicUnsigned})
    for (std::size_t i = 0; i < 256; ++i) {
      CHECK_EQ(int{nearest_code(*map, (*map)[i])}, static_cast<int>(i));
      if (i == 255) continue;
      const double a = (*map)[i], b = (*map)[i + 1];
      CHECK_EQ(int{nearest_code(*map, static_cast<float>(a + 0.4 * (b - a)))}, static_cast<int>(i));
      CHECK_EQ(int{nearest_code(*map, static_cast<float>(a + 0.6 * (b - a)))}, static_cast<int>(i + 1));
    }
  CHECK_EQ(int{nearest_code(kDynamicSigned, -2.0f)}, 0);
  CHECK_EQ(int{nearest_code(kDynamicSigned, 2.0f)}, 255);
}

TEST("double quantization restores absmax within half a gap of the 8-bit map") {
  auto absmax = random_values(1000, 3, 0.01f);
  for (float& x : absmax) x = std::abs(x) + 0.01f;
  const DoubleQuantized d = double_quantize(absmax.data(), 1000);
  CHECK_EQ(d.nested_absmax.size(), 4u);
  const Nf4Scales scales{nullptr, d.codes.data(), kDynamicSigned.data(), d.nested_absmax.data(), d.offset};
  for (std::int64_t i = 0; i < 1000; ++i)
    CHECK_CLOSE(nf4_scale(scales, i), absmax[static_cast<std::size_t>(i)], 0.0071 * d.nested_absmax[static_cast<std::size_t>(i / 256)]);
}

TEST("codes, absmax and double-quantized absmax equal bitsandbytes' golden vectors") {
  for (const char* model : {"qwen2_tied", "qwen2_untied", "qwen3"}) {
    const auto folder = shared_dir() / "golden" / model;
    const SafetensorsFile weights(folder / "model.safetensors"), golden(folder / "nf4_layer0.safetensors");
    for (const char* name : {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"}) {
      const std::string key = name;
      const std::vector<float> w = floats(weights.at(key));
      const auto n = static_cast<std::int64_t>(w.size());
      for (const Isa isa : runnable_isas()) {
        std::vector<std::uint8_t> packed(static_cast<std::size_t>(nf4_bytes(n)));
        std::vector<float> absmax(static_cast<std::size_t>(nf4_blocks(n)));
        quantize_nf4(exec(isa), w.data(), n, packed.data(), absmax.data());
        CHECK(absmax == floats(golden.at(key + ".sq.absmax")));
        CHECK(packed == bytes(golden.at(key + ".sq.packed")));
        CHECK(packed == bytes(golden.at(key + ".dq.packed")));
        std::vector<float> back(w.size());
        dequantize_nf4(packed.data(), {.absmax = absmax.data()}, 0, n, back.data());
        CHECK(back == floats(golden.at(key + ".sq.dequant")));

        const DoubleQuantized d = double_quantize(absmax.data(), nf4_blocks(n));
        CHECK(d.codes == bytes(golden.at(key + ".dq.absmax")));
        CHECK(d.nested_absmax == floats(golden.at(key + ".dq.nested_absmax")));
        const std::vector<float> offset = floats(golden.at(key + ".dq.offset"));
        CHECK_EQ(d.offset, offset[0]);
        const std::vector<float> map = floats(golden.at(key + ".dq.nested_code"));
        const Nf4Scales scales{nullptr, d.codes.data(), map.data(), d.nested_absmax.data(), d.offset};
        dequantize_nf4(packed.data(), scales, 0, n, back.data());
        CHECK(back == floats(golden.at(key + ".dq.dequant")));
      }
    }
  }
}

}  // namespace engine
