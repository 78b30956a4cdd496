#include "cuda/ops/glu.h"

#include "cuda/ops/op_test.h"

namespace engine::cuda {
namespace {

using namespace test;

const std::int64_t kShapes[][2] = {{0, 8}, {1, 8}, {3, 64}, {63, 72}, {2, 4104}};

TEST("the gated activation on the device and its gradient are the CPU's") {
  for (const Activation act : {Activation::silu, Activation::gelu_tanh})
    for (const auto& [t, f] : kShapes) {
      const auto both = random_bf16(2 * t * f, 1, 2.0f), dout = random_bf16(t * f, 2);
      std::vector<float> out(static_cast<std::size_t>(t * f)), dboth(both.size());
      const ConstRows gate(both.data(), t, f, 2 * f), up(both.data() + f, t, f, 2 * f);
      engine::glu_forward(cpu(), act, gate, up, rows(out, t, f));
      engine::glu_backward(cpu(), act, gate, up, rows(dout, t, f), Rows(dboth.data(), t, f, 2 * f), Rows(dboth.data() + f, t, f, 2 * f));

      const DeviceRows device_both(both, t, 2 * f, 64), device_out(t, f, 8), device_dout(dout, t, f);
      glu_forward(act, device_both.view(), device_out.view(), stream());
      const std::vector<float> forward = device_out.read();
      CHECK_ERROR(relative_error(forward, out), kRounding, t, "x", f);
      glu_backward(act, device_dout.view(), device_both.view(), device_dout.view(), stream());
      CHECK_ERROR(relative_error(device_both.read(), dboth), kRounding, t, "x", f);
      CHECK(device_dout.read() == forward);
    }
}

TEST("gates far from zero give finite gradients") {
  const std::vector<float> both = {-200.0f, 200.0f, -88.0f, 88.0f, -1e4f, 1e4f, 0.0f, -0.0f, 1, 1, 1, 1, 1, 1, 1, 1};
  for (const Activation act : {Activation::silu, Activation::gelu_tanh}) {
    const DeviceRows device(both, 1, 16), dout(std::vector<float>(8, 1.0f), 1, 8), out(1, 8);
    glu_forward(act, device.view(), out.view(), stream());
    glu_backward(act, dout.view(), device.view(), {}, stream());
    for (const float value : device.read()) CHECK(std::isfinite(value));
    for (const float value : out.read()) CHECK(std::isfinite(value));
    const auto forward = out.read();
    CHECK_EQ(forward[5], round_to_bf16(1e4f));
  }
}

}  // namespace
}  // namespace engine::cuda
