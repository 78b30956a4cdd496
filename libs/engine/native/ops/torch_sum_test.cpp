#include "ops/torch_sum.h"

#include <bit>
#include <vector>

#include "core/test.h"

namespace engine {

// Expected bits from torch 2.13 on a CPU: ((arange(n) * 2654435761 % 4294967296) / 4294967296).float().sum().
TEST("torch_sum adds in torch's order, bit for bit") {
  struct Case {
    std::int64_t n;
    std::uint32_t bits;
  };
  for (const Case& expected : {Case{1, 0x00000000u}, Case{7, 0x403ea33fu}, Case{8, 0x40538455u}, Case{31, 0x41762c40u}, Case{32, 0x4178b7bdu},
                             Case{33, 0x41829358u}, Case{63, 0x41f829bbu}, Case{64, 0x41ffa6f3u}, Case{160, 0x429ec8dcu}, Case{511, 0x437eeb2eu},
                             Case{1000, 0x43f9fcfau}, Case{2048, 0x447fd60eu}, Case{4096, 0x450001cbu}, Case{17500, 0x4608b5b6u}, Case{32768, 0x467ffd06u}}) {
    std::vector<float> values(static_cast<std::size_t>(expected.n));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(static_cast<double>(static_cast<std::uint32_t>(i * 2654435761u)) / 4294967296.0);
    CHECK_EQ(std::bit_cast<std::uint32_t>(torch_sum(values.data(), expected.n)), expected.bits);
  }
}

TEST("the sum of nothing is zero") { CHECK_EQ(torch_sum(nullptr, 0), 0.0f); }

}  // namespace engine
