#include "cuda/ops/reduce.h"

#include "cuda/ops/op_test.h"
#include "ops/reduce.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("the sum of squares and the clipping scale are the CPU's, and show values that are not finite") {
  for (const std::int64_t n : {0, 1, 63, 4097, 100003}) {
    std::vector<float> x = random_values(n, 1);
    const DeviceBuffer<double> sum(1);
    const DeviceBuffer<float> scale(1), norm(1);
    const DeviceMemory workspace(sum_of_squares_workspace());
    const auto run = [&] {
      const DeviceBuffer<float> device(x);
      sum_of_squares(device.data(), n, sum.data(), workspace.data(), stream());
      clip_scale(sum.data(), 1.0f, scale.data(), norm.data(), stream());
      stream().synchronize();
    };
    run();
    const double expected = engine::sum_of_squares(cpu(), x.data(), n), length = std::sqrt(expected);
    const double total = sum.read(stream())[0];
    CHECK_CLOSE(total, expected, 1e-12 * (expected + 1));
    const float factor = scale.read(stream())[0], measured = norm.read(stream())[0];
    CHECK_CLOSE(factor, std::min(1.0, 1.0 / (length + 1e-6)), 1e-7);
    CHECK_CLOSE(measured, length, 1e-6 * (length + 1));
    if (n == 0) continue;
    x.back() = std::numeric_limits<float>::infinity();
    run();
    const float skipped = scale.read(stream())[0];
    CHECK(std::isnan(skipped));
  }
}

TEST("the gradient of a bias is added to what was there") {
  const std::int64_t shapes[][2] = {{0, 64}, {1, 8}, {63, 72}, {513, 200}};
  for (const auto& [t, n] : shapes) {
    const auto dy = random_bf16(t * n, 1);
    std::vector<float> db = random_values(n, 2);
    const DeviceBuffer<float> device_db(db);
    engine::bias_gradient(cpu(), rows(dy, t, n), db.data());
    const DeviceRows device(dy, t, n, 8);
    const DeviceMemory workspace(bias_gradient_workspace(t, n));
    bias_gradient(device.view(), device_db.data(), workspace.data(), stream());
    CHECK_ERROR(relative_error(device_db.read(stream()), db), 1e-6, t, "x", n);
  }
}

TEST("the largest logit's column is the first of equals, and NaN never wins") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t v : {1, 63, 65, 4097}) {
    auto x = random_bf16(4 * v, 3);
    for (std::int64_t c = 0; c < v; ++c) x[static_cast<std::size_t>(v + c)] = 2.0f, x[static_cast<std::size_t>(2 * v + c)] = nan;
    x[static_cast<std::size_t>(3 * v + v / 2)] = nan;
    std::vector<std::int32_t> expected(4);
    engine::argmax_rows(cpu(), rows(x, 4, v), expected.data());
    const DeviceRows device(x, 4, v);
    const DeviceBuffer<std::int32_t> out(4);
    argmax_rows(device.view(), out.data(), stream());
    CHECK(out.read(stream()) == expected);
  }
}

}  // namespace
}  // namespace engine::cuda
