#include "core/bf16.h"

#include <cmath>
#include <limits>

#include "core/test.h"

namespace engine {

TEST("every bf16 survives widening and narrowing") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bf16 value{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(value))) CHECK(std::isnan(to_float(to_bf16(to_float(value)))));
    else CHECK_EQ(to_bf16(to_float(value)).bits, value.bits);
  }
}

TEST("every f16 survives widening and narrowing") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 value{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(value))) CHECK(std::isnan(to_float(to_f16(to_float(value)))));
    else CHECK_EQ(to_f16(to_float(value)).bits, value.bits);
  }
}

TEST("halfway values round to the even neighbour") {
  CHECK_EQ(to_bf16(1.00390625f).bits, 0x3f80);  // 1 + 2^-8: between 1 and 1 + 2^-7
  CHECK_EQ(to_bf16(1.01171875f).bits, 0x3f82);  // 1 + 3·2^-8
  CHECK_EQ(to_f16(1.00048828125f).bits, 0x3c00);
  CHECK_EQ(to_f16(1.00146484375f).bits, 0x3c02);
  CHECK_EQ(to_f16(0x1p-25f).bits, 0x0000);  // half of the smallest subnormal
  CHECK_EQ(to_f16(0x1.8p-24f).bits, 0x0002);
}

TEST("overflow narrows to infinity") {
  CHECK_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  CHECK_EQ(to_f16(65519.0f).bits, 0x7bff);
  CHECK_EQ(to_f16(65520.0f).bits, 0x7c00);
  CHECK_EQ(to_f16(-1e30f).bits, 0xfc00);
}

}  // namespace engine
