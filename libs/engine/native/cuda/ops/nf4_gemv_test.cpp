#include "cuda/ops/nf4_gemv.h"

#include "cuda/ops/op_test.h"
#include "ops/gemm.h"
#include "ops/linear.h"

namespace engine::cuda {
namespace {

using namespace test;
using engine::test::make_weight;
using engine::test::WeightKind;

TEST("products of few rows with NF4 weights are the CPU's, with a bias and an adapter") {
  const std::int64_t cases[][3] = {{1, 1, 64}, {1, 63, 128}, {3, 65, 1088}, {8, 40, 320}, {9, 33, 64}, {17, 48, 192}, {32, 16, 4160}};
  for (const WeightKind kind : {WeightKind::nf4, WeightKind::nf4_double})
    for (const auto& [b, n, k] : cases) {
      const auto host = make_weight(kind, n, k, 3);
      const DeviceWeight weight(host);
      const auto x = random_bf16(b * k, 1), bias = random_bf16(n, 2), low = random_bf16(b * 16, 4), up = random_bf16(n * 16, 5);
      std::vector<float> y(static_cast<std::size_t>(b * n));
      linear(cpu_bf16(), rows(x, b, k), host.view, bias.data(), rows(y, b, n));
      const DeviceRows device_x(x, b, k, 8), device_bias(bias, 1, n), out(b, n), adapted(b, n, 8), device_low(low, b, 16), device_up(up, n, 16);
      nf4_gemv(device_x.view(), weight.view, device_bias.view().data, out.view(), stream());
      CHECK_ERROR(relative_error(out.read(), y), kRounding, b, " rows, ", n, "x", k);
      const GemvLowRank term{device_low.view(), device_up.view()};
      nf4_gemv(device_x.view(), weight.view, device_bias.view().data, adapted.view(), stream(), &term);
      engine::gemm_nt(cpu(), rows(low, b, 16), rows(up, n, 16), rows(y, b, n), 1.0f, true);
      CHECK_ERROR(relative_error(adapted.read(), y), kRounding, b, " rows, ", n, "x", k);
    }
}

TEST("a row's result does not depend on how many rows there are") {
  const std::int64_t n = 40, k = 640;
  const DeviceWeight weight(make_weight(WeightKind::nf4_double, n, k, 3));
  const DeviceRows x(random_bf16(32 * k, 1), 32, k), all(32, n), one(1, n);
  nf4_gemv(x.view(), weight.view, nullptr, all.view(), stream());
  const auto together = all.read();
  for (const std::int64_t row : {0, 7, 8, 31}) {
    nf4_gemv(x.view().row_range(row, 1), weight.view, nullptr, one.view(), stream());
    const auto alone = one.read();
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + row * n));
  }
}

}  // namespace
}  // namespace engine::cuda
