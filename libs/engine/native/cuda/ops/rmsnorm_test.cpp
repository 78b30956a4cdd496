#include "cuda/ops/rmsnorm.h"

#include "cuda/ops/op_test.h"
#include "ops/rmsnorm.h"

namespace engine::cuda {
namespace {

using namespace test;

const std::int64_t kShapes[][2] = {{0, 64}, {1, 8}, {3, 64}, {2, 2056}, {5, 3584}, {2, 8192}, {1, 16384}, {65, 136}};

TEST("a norm on the device is the CPU's, with and without what is added first") {
  for (const auto& [t, h] : kShapes)
    for (const bool with_delta : {false, true}) {
      const auto x = random_bf16(t * h, 1), delta = random_bf16(t * h, 2);
      const auto weight = random_values(h, 3);
      std::vector<float> sum = x;
      if (with_delta)
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = round_to_bf16(x[i] + delta[i]);
      std::vector<float> y(x.size()), rstd(static_cast<std::size_t>(t));
      engine::rmsnorm_forward(cpu(), {weight.data(), h, 1e-6f, 1.0f}, rows(sum, t, h), rows(y, t, h), rstd.data());

      const DeviceRows device_x(x, t, h, 8), device_delta(delta, t, h), device_y(t, h, 64);
      const DeviceBuffer<float> device_weight(weight), device_rstd = poisoned_floats(t);
      rmsnorm_forward({device_weight.data(), 1e-6f, 1.0f}, device_x.view(), with_delta ? View<const bf16>(device_delta.view()) : View<const bf16>(),
                      device_y.view(), device_rstd.data(), stream());
      CHECK(device_x.read() == sum);
      CHECK_ERROR(relative_error(device_y.read(), y), kRounding, t, "x", h);
      CHECK_ERROR(relative_error(device_rstd.read(stream()), rstd), 1e-6, t, "x", h);
    }
}

TEST("the gradient of a norm on the device is the CPU's, written or added, also over its own input") {
  for (const auto& [t, h] : kShapes)
    for (const bool accumulate : {false, true}) {
      const auto x = random_bf16(t * h, 4), dy = random_bf16(t * h, 5), before = random_bf16(t * h, 6);
      const auto weight = random_values(h, 7);
      std::vector<float> y(x.size()), rstd(static_cast<std::size_t>(t)), dx = before, dweight(static_cast<std::size_t>(h), 0.5f);
      const engine::RmsNorm norm{weight.data(), h, 1e-5f, 0.0f};
      engine::rmsnorm_forward(cpu(), norm, rows(x, t, h), rows(y, t, h), rstd.data());
      engine::rmsnorm_backward(cpu(), norm, rows(x, t, h), rstd.data(), rows(dy, t, h), rows(dx, t, h), accumulate);
      engine::rmsnorm_backward_weight(cpu(), norm, rows(x, t, h), rstd.data(), rows(dy, t, h), dweight.data());

      const DeviceRows device_x(x, t, h), device_dy(dy, t, h, 16), device_dx(before, t, h, 8);
      const DeviceBuffer<float> device_weight(weight), device_rstd(rstd), device_dweight(std::vector<float>(static_cast<std::size_t>(h), 0.5f));
      const DeviceMemory workspace(rmsnorm_weight_workspace(t, h));
      rmsnorm_backward_weight(device_x.view(), device_rstd.data(), device_dy.view(), device_dweight.data(), workspace.data(), stream());
      const RmsNorm device_norm{device_weight.data(), 1e-5f, 0.0f};
      rmsnorm_backward(device_norm, device_x.view(), device_rstd.data(), device_dy.view(), device_dx.view(), accumulate, stream());
      CHECK_ERROR(relative_error(device_dx.read(), dx), kRounding, t, "x", h);
      CHECK_ERROR(relative_error(device_dweight.read(stream()), dweight), 1e-5, t, "x", h);
      if (accumulate) continue;
      rmsnorm_backward(device_norm, device_x.view(), device_rstd.data(), device_dy.view(), device_dy.view(), false, stream());
      CHECK_ERROR(relative_error(device_dy.read(), dx), kRounding, t, "x", h);
    }
}

}  // namespace
}  // namespace engine::cuda
