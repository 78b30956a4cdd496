#include "cuda/ops/dora.h"

#include <array>

#include "cuda/ops/op_test.h"
#include "ops/dora.h"

namespace engine::cuda {
namespace {

using namespace test;
using engine::test::make_weight;
using engine::test::WeightKind;

constexpr float kScale = 0.7f;

TEST("norms of decomposed rows equal the CPU's to 1e-6, for NF4 and bf16 weights and ranks beyond a chunk") {
  const std::int64_t cases[][3] = {{8, 64, 1}, {72, 1088, 20}, {16, 2056, 40}};
  for (const WeightKind kind : {WeightKind::nf4, WeightKind::nf4_double, WeightKind::bf16})
    for (const auto& [n, k, rank] : cases) {
      const auto host = make_weight(kind, n, k, 3);
      const DeviceWeight weight(host);
      const std::vector<float> a = random_values(rank * k, 1, 0.1f), b = random_values(n * rank, 2, 0.1f);
      std::vector<float> expected(static_cast<std::size_t>(n)), scratch(static_cast<std::size_t>(dora_chunk_rows(host.view) * k));
      engine::dora_inverse_norms(cpu(), host.view, rows(a, rank, k), rows(b, n, rank), kScale, rows(scratch, dora_chunk_rows(host.view), k), expected.data());
      const DeviceBuffer<float> device_a(a), device_b(b), inverse = poisoned_floats(n);
      const DoraMatrices adapter{device_a.data(), device_b.data(), rank, kScale};
      if (kind == WeightKind::bf16)
        dora_inverse_norms(View<const bf16>(static_cast<const bf16*>(weight.view.data), n, k), adapter, inverse.data(), stream());
      else
        dora_inverse_norms(weight.view, adapter, inverse.data(), stream());
      CHECK(relative_error(inverse.read(stream()), expected) <= 1e-6);
    }
}

TEST("a row of zeros has no direction: its inverse norm and its magnitude are zero") {
  const DeviceRows w(std::vector<float>(8 * 8, 0.0f), 8, 8);
  const DeviceBuffer<float> a(std::vector<float>(8, 1.0f)), b(std::vector<float>{2, 0, 0, 0, 0, 0, 0, 0}), inverse = poisoned_floats(8), magnitude = poisoned_floats(8);
  dora_inverse_norms(w.view(), {a.data(), b.data(), 1, 1.0f}, inverse.data(), stream());
  dora_magnitudes(inverse.data(), 8, magnitude.data(), stream());
  const std::vector<float> inverses = inverse.read(stream()), magnitudes = magnitude.read(stream());
  CHECK_CLOSE(magnitudes[0], 2 * std::sqrt(8.0), 1e-6);
  for (std::size_t i = 1; i < 8; ++i) CHECK(inverses[i] == 0 && magnitudes[i] == 0);
}

TEST("outputs are scaled by projection, others left as they are, with a bias, onto what is there, and in place") {
  const std::int64_t n = 88;
  const std::vector<float> magnitude = random_values(n, 1), inverse = random_values(n, 2), bias = random_bf16(n, 3);
  const DeviceBuffer<float> m(magnitude), i(inverse);
  const DeviceRows device_bias(bias, 1, n);
  const std::array<DoraPart, 2> parts{{{m.data(), i.data(), 0, 16}, {m.data() + 40, i.data() + 40, 40, 48}}};
  for (const std::int64_t t : {0, 1, 9, 65})
    for (const bool accumulate : {false, true}) {
      const std::vector<float> x = random_bf16(t * n, 4), y = random_bf16(t * n, 5);
      std::vector<float> expected;
      for (std::int64_t at = 0; at < t * n; ++at) {
        const auto column = static_cast<std::size_t>(at % n), place = static_cast<std::size_t>(at);
        const float c = column < 16 || column >= 40 ? magnitude[column] * inverse[column] : 1.0f;
        expected.push_back(round_to_bf16((accumulate ? y[place] : 0.0f) + std::fma(c, x[place], bias[column])));
      }
      const DeviceRows device_x(x, t, n, 8), device_y(y, t, n, 16);
      dora_scale(device_x.view(), parts, device_bias.view().data, device_y.view(), accumulate, stream());
      CHECK(device_y.read() == expected);
      if (accumulate) continue;
      dora_scale(device_x.view(), parts, device_bias.view().data, device_x.view(), false, stream());
      CHECK(device_x.read() == expected);
    }
}

TEST("the gradient of magnitudes is the CPU's, added to what is there") {
  for (const auto& [t, n] : {std::pair<std::int64_t, std::int64_t>{1, 8}, {333, 72}}) {
    const std::vector<float> dy = random_bf16(t * n, 1), u = random_bf16(t * n, 2), inverse = random_values(n, 3);
    std::vector<float> expected = random_values(n, 4);
    const DeviceBuffer<float> gradient(expected), device_inverse(inverse), workspace = poisoned_floats(dora_workspace(t, n) / 4);
    engine::dora_magnitude_backward(cpu(), rows(dy, t, n), rows(u, t, n), inverse.data(), expected.data());
    const DeviceRows device_dy(dy, t, n, 8), device_u(u, t, n);
    dora_magnitude_backward(device_dy.view(), device_u.view(), device_inverse.data(), gradient.data(), workspace.data(), stream());
    CHECK(relative_error(gradient.read(stream()), expected) <= 2e-6);
  }
}

}  // namespace
}  // namespace engine::cuda
