#include "cuda/ops/cross_entropy.h"

#include "cuda/ops/op_test.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("losses and gradients of a chunk of logits are the CPU's") {
  const std::int64_t shapes[][2] = {{0, 8}, {1, 1}, {3, 63}, {5, 65}, {2, 4097}, {2, 9000}};
  for (const auto& [r, v] : shapes)
    for (const float softcap : {0.0f, 5.0f}) {
      const auto z = random_bf16(r * v, 1, 4.0f);
      std::vector<std::uint32_t> targets;
      std::vector<float> weights;
      for (std::int64_t i = 0; i < r; ++i) {
        targets.push_back(static_cast<std::uint32_t>((7 * i + v - 1) % v));
        weights.push_back(i == 1 ? 0.0f : 0.25f + 0.1f * static_cast<float>(i));
      }
      std::vector<float> gradient = z, losses(static_cast<std::size_t>(r));
      const double total = engine::cross_entropy(cpu(), rows(gradient, r, v), targets, weights, softcap, LogitGradient::in_place, losses.data());

      const DeviceRows logits(z, r, v, 8), kept(z, r, v);
      const DeviceBuffer<std::uint32_t> device_targets(targets);
      const DeviceBuffer<float> device_weights(weights), device_losses = poisoned_floats(r), again = poisoned_floats(r);
      cross_entropy(logits.view(), device_targets.data(), device_weights.data(), softcap, LogitGradient::in_place, device_losses.data(), stream());
      cross_entropy(kept.view(), device_targets.data(), device_weights.data(), softcap, LogitGradient::none, again.data(), stream());
      CHECK_ERROR(relative_error(device_losses.read(stream()), losses), 2e-6, r, "x", v);
      CHECK(again.read(stream()) == device_losses.read(stream()));
      CHECK_ERROR(relative_error(logits.read(), gradient), kRounding, r, "x", v);
      CHECK(kept.read() == z);

      const DeviceBuffer<double> sum(std::vector<double>{10.0});
      const DeviceBuffer<std::int64_t> count(std::vector<std::int64_t>{100});
      add_losses(device_losses.data(), device_weights.data(), r, sum.data(), count.data(), stream());
      const double device_total = sum.read(stream())[0];
      CHECK_CLOSE(device_total - 10.0, total, 1e-5 * (total + 1));
      const std::int64_t labelled = count.read(stream())[0];
      CHECK_EQ(labelled, 100 + r - (r > 1 ? 1 : 0));
    }
}

TEST("logits far apart, and minus infinity, give finite losses") {
  std::vector<float> z(64, -std::numeric_limits<float>::infinity());
  z[3] = 1e4f;
  z[40] = -1e4f;
  const DeviceRows logits(z, 1, 64);
  const DeviceBuffer<std::uint32_t> target(std::vector<std::uint32_t>{40});
  const DeviceBuffer<float> weight(std::vector<float>{1.0f}), loss(1);
  cross_entropy(logits.view(), target.data(), weight.data(), 0, LogitGradient::in_place, loss.data(), stream());
  const float value = loss.read(stream())[0];
  CHECK_CLOSE(value, double{round_to_bf16(1e4f)} * 2, 1e-3);
  const auto gradient = logits.read();
  CHECK_EQ(gradient[3], 1.0f);
  CHECK_EQ(gradient[40], -1.0f);
  CHECK_EQ(gradient[0], 0.0f);
}

TEST("a row that begins with minus infinities alone gives the loss of the rest") {
  std::vector<float> z(3 * 8192 + 5, -std::numeric_limits<float>::infinity());
  z[20000] = z[24579] = 1.0f;
  const DeviceRows logits(z, 1, static_cast<std::int64_t>(z.size()));
  const DeviceBuffer<std::uint32_t> target(std::vector<std::uint32_t>{20000});
  const DeviceBuffer<float> weight(std::vector<float>{1.0f}), loss(1);
  cross_entropy(logits.view(), target.data(), weight.data(), 0, LogitGradient::in_place, loss.data(), stream());
  const float value = loss.read(stream())[0];
  CHECK_CLOSE(value, 0.69314718, 1e-6);
  const auto gradient = logits.read();
  CHECK_EQ(gradient[20000], -0.5f);
}

}  // namespace
}  // namespace engine::cuda
