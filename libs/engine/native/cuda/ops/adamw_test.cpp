#include "cuda/ops/adamw.h"

#include "cuda/ops/op_test.h"
#include "ops/dynamic8.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("five 8-bit updates on the device leave the CPU's bits in parameters and states") {
  for (const std::int64_t n : {1, 255, 256, 4097, 20000})
    for (const DecayOrder order : {DecayOrder::before_update, DecayOrder::after_update}) {
      const auto size = static_cast<std::size_t>(n), scales = static_cast<std::size_t>(dynamic_blocks(n));
      std::vector<float> p = random_values(n, 1), m_absmax(scales), v_absmax(scales);
      std::vector<std::uint8_t> m(size), v(size);
      const DeviceBuffer<float> device_p(p), device_m_absmax(m_absmax), device_v_absmax(v_absmax);
      const DeviceBuffer<std::uint8_t> device_m(m), device_v(v);
      for (std::int64_t step = 1; step <= 5; ++step) {
        const auto g = random_values(n, 10 + static_cast<std::uint64_t>(step), 1e-2f);
        AdamW adamw{.learning_rate = 1e-3f, .weight_decay = 0.1f, .step = step, .grad_scale = 0.7f, .decay = order};
        engine::adamw_8bit(cpu(), adamw, p.data(), g.data(), m.data(), v.data(), m_absmax.data(), v_absmax.data(), n);
        const DeviceBuffer<AdamWConstants> constants(std::vector<AdamWConstants>{adamw_constants(adamw)});
        const DeviceBuffer<float> device_g(g), scale(std::vector<float>{0.7f});
        adamw_8bit(constants.data(), scale.data(), device_p.data(), device_g.data(), device_m.data(), device_v.data(), device_m_absmax.data(),
                   device_v_absmax.data(), n, stream());
        CHECK(device_p.read(stream()) == p);
        CHECK(device_m.read(stream()) == m);
        CHECK(device_v.read(stream()) == v);
        CHECK(device_m_absmax.read(stream()) == m_absmax);
        CHECK(device_v_absmax.read(stream()) == v_absmax);
      }
    }
}

TEST("fp32 updates on the device leave the CPU's bits, and a scale that is not finite changes nothing") {
  for (const std::int64_t n : {0, 1, 63, 4097}) {
    std::vector<float> p = random_values(n, 1), m = random_values(n, 2, 1e-2f), v(static_cast<std::size_t>(n), 1e-4f);
    const auto g = random_values(n, 4);
    const DeviceBuffer<float> device_p(p), device_m(m), device_v(v), device_g(g), scale(std::vector<float>{0.5f}),
        broken(std::vector<float>{std::numeric_limits<float>::quiet_NaN()});
    AdamW adamw{.learning_rate = 1e-2f, .weight_decay = 0.01f, .step = 3, .grad_scale = 0.5f};
    const DeviceBuffer<AdamWConstants> constants(std::vector<AdamWConstants>{adamw_constants(adamw)});
    adamw_f32(constants.data(), broken.data(), device_p.data(), device_g.data(), device_m.data(), device_v.data(), n, stream());
    CHECK(device_p.read(stream()) == p);
    CHECK(device_m.read(stream()) == m);
    engine::adamw_f32(cpu(), adamw, p.data(), g.data(), m.data(), v.data(), n);
    adamw_f32(constants.data(), scale.data(), device_p.data(), device_g.data(), device_m.data(), device_v.data(), n, stream());
    CHECK(device_p.read(stream()) == p);
    CHECK(device_m.read(stream()) == m);
    CHECK(device_v.read(stream()) == v);
  }
}

}  // namespace
}  // namespace engine::cuda
