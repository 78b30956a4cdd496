#include "cuda/ops/nf4.h"

#include "core/code_tables.h"
#include "cuda/ops/op_test.h"
#include "ops/decode.h"

namespace engine::cuda {
namespace {

using namespace test;
using engine::test::make_weight;
using engine::test::WeightKind;

TEST("device NF4 weights equal the CPU's bf16 weights bit for bit, and the scratch's tail stays as it is") {
  const std::int64_t shapes[][2] = {{0, 64}, {1, 64}, {3, 192}, {5, 4096 + 64}, {65, 128}, {7, 72}, {3, 6}, {2, 4098}};
  for (const WeightKind kind : {WeightKind::nf4, WeightKind::nf4_double})
    for (const auto& [n, k] : shapes) {
      const auto host = make_weight(kind, n, k, 3);
      const DeviceWeight weight(host);
      const DeviceRows scratch(n, k, 64);
      nf4_dequantize(weight.view, scratch.view(), stream());
      std::vector<float> expected(static_cast<std::size_t>(n * k));
      dequantize_nf4(host.bytes.data(), host.view.nf4, 0, n * k, expected.data());
      for (float& value : expected) value = round_to_bf16(value);
      CHECK(scratch.read() == expected);
    }
}

TEST("a weight of another type or shape is refused") {
  const auto host = make_weight(WeightKind::nf4, 2, 64, 3);
  const DeviceWeight weight(host);
  const DeviceRows narrow(2, 32);
  CHECK_THROWS(invalid, (nf4_dequantize(weight.view, narrow.view(), stream()), 0));
  const DeviceWeight bf16_weight(make_weight(WeightKind::bf16, 2, 64, 3));
  const DeviceRows scratch(2, 64);
  CHECK_THROWS(invalid, (nf4_dequantize(bf16_weight.view, scratch.view(), stream()), 0));
}

}  // namespace
}  // namespace engine::cuda
