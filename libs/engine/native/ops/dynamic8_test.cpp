#include "ops/dynamic8.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/code_tables.h"
#include "ops/op_test.h"

namespace engine {
using namespace test;
namespace {

// What a vector kernel computes with the look-up, one value at a time.
std::uint8_t looked_up(const Dynamic8Lookup& lookup, float x) {
  const std::int32_t prefix = static_cast<std::int32_t>((std::bit_cast<std::uint32_t>(x) & 0x7fffffffu) >> 16);
  const auto bin = static_cast<std::size_t>(std::max(prefix, Dynamic8Lookup::kFirstBin) - Dynamic8Lookup::kFirstBin);
  const std::int32_t first = (std::signbit(x) ? lookup.negative : lookup.positive)[bin];
  return static_cast<std::uint8_t>(first + (x > lookup.middle[static_cast<std::size_t>(first)]));
}

// Random magnitudes over all decades of the map, and every entry and midpoint with its neighbours.
std::vector<float> probes(const std::array<float, 256>& map) {
  std::vector<float> values = {0.0f, -0.0f, 1.0f, 1e-30f, -1e-30f};
  const auto random = random_values(20000, 1);
  for (std::size_t i = 0; i + 1 < random.size(); i += 2) values.push_back(std::tanh(random[i]) * std::pow(10.0f, -3.5f * std::abs(random[i + 1])));
  for (std::size_t i = 0; i + 1 < 256; ++i)
    for (const float x : {map[i], (map[i] + map[i + 1]) * 0.5f})
      for (const float y : {x, std::nextafter(x, -2.0f), std::nextafter(x, 2.0f)}) values.push_back(std::clamp(y, -1.0f, 1.0f));
  return values;
}

}  // namespace

TEST("the two look-ups find the code of the binary search for every value") {
  for (const float x : probes(kDynamicSigned)) CHECK_EQ(int{looked_up(signed_lookup(), x)}, int{nearest_code(kDynamicSigned, x)});
  for (const float x : probes(kDynamicUnsigned))
    if (x >= 0) CHECK_EQ(int{looked_up(unsigned_lookup(), x)}, int{nearest_code(kDynamicUnsigned, x)});
}

TEST("blocks of 256 have their own scale, a short last block too, and a block of zeros stays zero") {
  std::vector<float> values = random_values(600, 2);
  for (std::size_t i = 256; i < 512; ++i) values[i] = 0.0f;
  for (std::size_t i = 512; i < 600; ++i) values[i] *= 1000.0f;
  std::vector<std::uint8_t> codes(600);
  std::vector<float> absmax(3), back(600);
  quantize_dynamic8(kDynamicSigned, values.data(), 600, codes.data(), absmax.data());
  dequantize_dynamic8(kDynamicSigned, codes.data(), absmax.data(), 600, back.data());
  CHECK_EQ(absmax[1], 0.0f);
  CHECK(absmax[2] > 100.0f * absmax[0]);
  for (std::size_t i = 0; i < 600; ++i) CHECK_CLOSE(back[i], values[i], 0.0071 * absmax[i / 256]);
}

}  // namespace engine
