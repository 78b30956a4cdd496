#include "cuda/ops/nf4_gemv.h"

#include <cmath>

#include "cuda/ops/lora_rows_case.h"
#include "cuda/ops/nf4_gemv_case.h"
#include "ops/gemm.h"
#include "ops/glu.h"
#include "ops/rmsnorm.h"

namespace engine::cuda {
namespace {

using namespace test;

// Poisoned but for the counters at its beginning, which a call leaves as zeros.
class Workspace {
 public:
  Workspace(std::int64_t rows, std::int64_t depth) : memory_(nf4_gemv_workspace(rows, depth)) { fill_bytes(memory_.data(), 0, std::min(memory_.bytes(), kCounters), stream()); }
  void* data() const { return memory_.data(); }

 private:
  static constexpr std::int64_t kCounters = 4 * 4096;
  DeviceMemory memory_;
};

TEST("products of few rows with NF4 weights are the CPU's") {
  struct Case {
    std::int64_t b;
    std::initializer_list<std::int64_t> n;
    std::int64_t k;
  };
  const Case cases[] = {{1, {1}, 64},           {1, {63}, 192},        {1, {100, 17, 16}, 1088}, {2, {65}, 1088}, {3, {130}, 320}, {4, {40, 24}, 640},
                        {5, {33}, 64},          {8, {300, 20}, 1088},  {9, {17, 16, 8}, 320},    {17, {48}, 192}, {33, {129}, 128}, {64, {16}, 4160},
                        {4, {16}, 6464},        {3, {8}, 20544}};  // long rows: other shapes of blocks, and not all rows at once
  for (const WeightKind kind : {WeightKind::nf4, WeightKind::nf4_double})
    for (const Case& c : cases) {
      const Stack w(kind, c.n, c.k);
      const auto x = random_bf16(c.b * c.k, 1), residual = random_bf16(c.b * w.outputs, 2), bias = random_bf16(w.outputs, 4);
      auto y = w.product(x, c.b);
      auto onto = y;
      for (std::size_t i = 0; i < y.size(); ++i) onto[i] = round_to_bf16(y[i] + bias[i % static_cast<std::size_t>(w.outputs)]) + residual[i];
      const DeviceRows device_x(x, c.b, c.k, 8), device_bias(bias, 1, w.outputs);
      const Workspace workspace(c.b, c.k);
      const DeviceRows out(c.b, w.outputs, 8), device_residual(residual, c.b, w.outputs);
      nf4_gemv(device_x.view(), w.packed, out.view(), {.workspace = workspace.data()}, stream());
      CHECK_ERROR(relative_error(out.read(), y), kRounding, c.b, " rows, ", w.outputs, "x", c.k);
      nf4_gemv(device_x.view(), w.packed, device_residual.view(),
               {.bias = device_bias.view().data, .residual = device_residual.view(), .workspace = workspace.data()}, stream());
      CHECK_ERROR(relative_error(device_residual.read(), onto), kRounding, c.b, " rows, ", w.outputs, "x", c.k, " onto a residual");
    }
}

TEST("gated products of few rows are the CPU's") {
  const std::int64_t cases[][3] = {{1, 8, 64}, {1, 136, 192}, {4, 48, 320}, {6, 72, 192}, {20, 24, 128}, {64, 8, 64}};
  for (const Activation act : {Activation::silu, Activation::gelu_tanh})
    for (const auto& [b, n, k] : cases) {
      const Stack w(WeightKind::nf4, {n, n}, k, true);
      const auto x = random_bf16(b * k, 1, 2.0f);
      const auto both = rounded(w.product(x, b));
      std::vector<float> y(static_cast<std::size_t>(b * n));
      glu_forward(cpu(), act, ConstRows(both.data(), b, n, 2 * n), ConstRows(both.data() + n, b, n, 2 * n), rows(y, b, n));
      const DeviceRows device_x(x, b, k, 8), out(b, n, 8);
      const Workspace workspace(b, k);
      nf4_gemv_gated(act, device_x.view(), w.packed, out.view(), {.workspace = workspace.data()}, stream());
      CHECK_ERROR(relative_error(out.read(), y), kRounding, b, " rows, ", n, "x", k);
    }
}

TEST("products normalize their rows on the way in, and add what each row's adapter says") {
  const std::int64_t k = 320, outputs = 100 + 17 + 16, ranks = 24;
  const Stack w(WeightKind::nf4_double, {100, 17, 16}, k);
  const auto norm_weight = random_values(k, 9);
  const DeviceBuffer<float> device_norm(norm_weight);
  for (const std::int64_t b : {1, 2, 4, 7, 33}) {
    const auto x = random_bf16(b * k, 1, 3.0f);
    std::vector<float> normed(x.size());
    const bool folds = b <= kGemvNormRows;
    if (folds)
      engine::rmsnorm_forward(cpu(), engine::RmsNorm{norm_weight.data(), k, 1e-6f, 1.0f}, rows(x, b, k), rows(normed, b, k), nullptr);
    else
      normed = x;
    normed = rounded(normed);
    auto y = w.product(normed, b);
    const AdapterCase adapters(b, k, {100, 17, 16}, ranks);
    adapters.add(normed, y);
    const RmsNorm norm{folds ? device_norm.data() : nullptr, 1e-6f, 1.0f};
    const DeviceRows device_x(x, b, k, 8), low(b, 3 * ranks);
    lora_rows_shrink(device_x.view(), norm, adapters.view(), low.view(), stream());
    const Workspace workspace(b, k);
    GemvExtras extras{.norm = norm, .workspace = workspace.data()};
    extras.adapters = adapters.view();
    extras.low = low.view();
    const DeviceRows out(b, outputs);
    nf4_gemv(device_x.view(), w.packed, out.view(), extras, stream());
    CHECK_ERROR(relative_error(out.read(), y), kRounding, b, " rows");
    if (!folds) continue;
    extras.low = {};
    for (int time = 0; time < 2; ++time) {  // the workspace is left as it was found
      const DeviceRows itself(b, outputs);
      nf4_gemv(device_x.view(), w.packed, itself.view(), extras, stream());
      CHECK_ERROR(relative_error(itself.read(), y), kRounding, b, " rows, which the product shrinks itself");
    }
  }
}

TEST("long rows are normalized on the way in, and shrunk for their adapters, too") {
  const std::int64_t k = 8192 + 64, n = 16;
  const Stack w(WeightKind::nf4_double, {n}, k);
  const auto norm_weight = random_values(k, 9), x = random_bf16(3 * k, 1, 3.0f);
  const DeviceBuffer<float> device_norm(norm_weight);
  std::vector<float> normed(x.size());
  engine::rmsnorm_forward(cpu(), engine::RmsNorm{norm_weight.data(), k, 1e-6f, 0.0f}, rows(x, 3, k), rows(normed, 3, k), nullptr);
  const AdapterCase adapters(3, k, {n}, 24);
  normed = rounded(normed);
  auto y = w.product(normed, 3);
  const DeviceRows device_x(x, 3, k), out(3, n), adapted(3, n);
  GemvExtras extras{.norm = {device_norm.data(), 1e-6f, 0.0f}};
  nf4_gemv(device_x.view(), w.packed, out.view(), extras, stream());
  CHECK_ERROR(relative_error(out.read(), y), kRounding, "three rows");
  const Workspace workspace(3, k);
  extras.adapters = adapters.view();
  extras.workspace = workspace.data();
  adapters.add(normed, y);
  nf4_gemv(device_x.view(), w.packed, adapted.view(), extras, stream());
  CHECK_ERROR(relative_error(adapted.read(), y), kRounding, "three rows with adapters");
}

TEST("an activation beyond fp16 shows in the result") {
  const Stack w(WeightKind::nf4_double, {16}, 64);
  std::vector<float> x(64, 0.0f);
  x[5] = 0x1p21f;
  const DeviceRows device_x(x, 1, 64), out(1, 16);
  nf4_gemv(device_x.view(), w.packed, out.view(), {}, stream());
  for (const float value : out.read()) CHECK(!std::isfinite(value));
  x[5] = 0x1p19f;
  const DeviceRows in_range(x, 1, 64);
  nf4_gemv(in_range.view(), w.packed, out.view(), {}, stream());
  CHECK_ERROR(relative_error(out.read(), w.product(x, 1)), kRounding, "in range");
}

}  // namespace
}  // namespace engine::cuda
