#include "cuda/ops/lora.h"

#include <cmath>

#include "cuda/ops/gemm.h"
#include "cuda/ops/op_test.h"
#include "ops/gemm.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("the scratch's tail holds each adapter in its own block and zeros elsewhere") {
  const std::int64_t inputs = 72, outputs = 40, tail = 48;
  const std::int64_t ranks[] = {16, 8, 3}, first_output[] = {0, 16, 32}, counts[] = {16, 16, 8};
  std::vector<float> expected(static_cast<std::size_t>((outputs + tail) * (inputs + tail)), 7.0f);
  const auto at = [&](std::int64_t r, std::int64_t c) -> float& { return expected[static_cast<std::size_t>(r * (inputs + tail) + c)]; };
  for (std::int64_t r = 0; r < outputs; ++r)
    for (std::int64_t c = 0; c < tail; ++c) at(r, inputs + c) = 0.0f;
  for (std::int64_t r = 0; r < tail; ++r)
    for (std::int64_t c = 0; c < inputs; ++c) at(outputs + r, c) = 0.0f;
  std::vector<DeviceBuffer<float>> kept;
  std::vector<LoraPart> parts;
  for (std::size_t p = 0; p < 3; ++p) {
    const auto a = random_values(ranks[p] * inputs, 2 * p + 1), b = random_values(counts[p] * ranks[p], 2 * p + 2);
    const auto slot = static_cast<std::int64_t>(16 * p);
    const float scale = 0.5f + static_cast<float>(p);
    for (std::int64_t j = 0; j < ranks[p]; ++j) {
      for (std::int64_t c = 0; c < inputs; ++c) at(outputs + slot + j, c) = round_to_bf16(a[static_cast<std::size_t>(j * inputs + c)]);
      for (std::int64_t r = 0; r < counts[p]; ++r)
        at(first_output[p] + r, inputs + slot + j) = round_to_bf16(scale * b[static_cast<std::size_t>(r * ranks[p] + j)]);
    }
    kept.emplace_back(a);
    const float* device_a = kept.back().data();
    kept.emplace_back(b);
    parts.push_back({device_a, kept.back().data(), ranks[p], scale, first_output[p], counts[p], slot});
  }
  const DeviceRows scratch(std::vector<float>(expected.size(), 7.0f), outputs + tail, inputs + tail);
  lora_pack(parts, scratch.view(), tail, stream());
  CHECK(scratch.read() == expected);
}

TEST("gradients are added from the products' rows to each adapter's own layout, several in one launch") {
  const std::int64_t ranks[] = {16, 5, 72, 1}, columns[] = {136, 264, 40, 1000}, gap = 24;
  std::vector<DeviceBuffer<float>> grads, sums;
  std::vector<LoraGradient> parts;
  std::vector<std::vector<float>> expected;
  for (std::size_t p = 0; p < 4; ++p) {
    const std::int64_t r = ranks[p], c = columns[p];
    const bool of_b = p != 1;
    const float scale = of_b ? 0.5f : 1.0f;
    const std::vector<float> from = random_values(r * (c + gap), 2 * p + 1);
    std::vector<float> grad = random_values(r * c, 2 * p + 2);
    sums.emplace_back(from);
    grads.emplace_back(grad);
    parts.push_back({View<const float>(sums.back().data(), r, c, c + gap), grads.back().data(), of_b, scale});
    for (std::int64_t j = 0; j < r; ++j)
      for (std::int64_t i = 0; i < c; ++i) {
        float& to = grad[static_cast<std::size_t>(of_b ? i * r + j : j * c + i)];
        to = std::fma(scale, from[static_cast<std::size_t>(j * (c + gap) + i)], to);
      }
    expected.push_back(grad);
  }
  lora_add_gradients(parts, stream());
  for (std::size_t p = 0; p < 4; ++p) CHECK(grads[p].read(stream()) == expected[p]);
}

TEST("one product over a scratch with its tail is the base's and the adapter's together, forward and backward") {
  const std::int64_t t = 37, k = 72, n = 40, r = 16;
  const float s = 0.25f;
  const auto x = random_bf16(t * k, 1), w = random_bf16(n * k, 2), dy = random_bf16(t * n, 5);
  const auto a = random_bf16(r * k, 3), b = random_bf16(n * r, 4);
  std::vector<float> low(static_cast<std::size_t>(t * r)), dlow(low.size()), y(static_cast<std::size_t>(t * n)), dx(x.size());
  engine::gemm_nt(cpu(), rows(x, t, k), rows(a, r, k), rows(low, t, r));
  engine::gemm_nt(cpu(), rows(x, t, k), rows(w, n, k), rows(y, t, n));
  engine::gemm_nt(cpu(), rows(low, t, r), rows(b, n, r), rows(y, t, n), s, true);
  engine::gemm_nn(cpu(), rows(dy, t, n), rows(b, n, r), rows(dlow, t, r), s);
  engine::gemm_nn(cpu(), rows(dy, t, n), rows(w, n, k), rows(dx, t, k));
  engine::gemm_nn(cpu(), rows(dlow, t, r), rows(a, r, k), rows(dx, t, k), 1.0f, true);

  std::vector<float> padded(static_cast<std::size_t>((n + r) * (k + r))), wide_x(static_cast<std::size_t>(t * (k + r))), wide_dy(static_cast<std::size_t>(t * (n + r)));
  for (std::int64_t i = 0; i < n; ++i) std::copy_n(w.data() + i * k, k, padded.data() + i * (k + r));
  for (std::int64_t i = 0; i < t; ++i) {
    std::copy_n(x.data() + i * k, k, wide_x.data() + i * (k + r));
    std::copy_n(dy.data() + i * n, n, wide_dy.data() + i * (n + r));
  }
  const DeviceRows scratch(padded, n + r, k + r), in(wide_x, t, k + r), din(wide_dy, t, n + r), out(t, n), dout(t, k);
  const DeviceBuffer<float> device_a(a), device_b(b);
  const LoraPart part{device_a.data(), device_b.data(), r, s, 0, n, 0};
  lora_pack({&part, 1}, scratch.view(), r, stream());
  Gemm gemm(GemmLibrary::none);
  gemm(GemmForm::nt, in.view().columns(0, k), scratch.view().row_range(n, r).columns(0, k), in.view().columns(k, r), stream());
  gemm(GemmForm::nn, din.view().columns(0, n), scratch.view().row_range(0, n).columns(k, r), din.view().columns(n, r), stream());
  gemm(GemmForm::nt, in.view(), scratch.view().row_range(0, n), out.view(), stream());
  gemm(GemmForm::nn, din.view(), scratch.view().columns(0, k), dout.view(), stream());
  CHECK_ERROR(relative_error(out.read(), y), 5e-3, "forward");
  CHECK_ERROR(relative_error(dout.read(), dx), 5e-3, "backward");
}

}  // namespace
}  // namespace engine::cuda
