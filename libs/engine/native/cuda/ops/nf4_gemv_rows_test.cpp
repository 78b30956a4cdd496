#include <cmath>

#include "cuda/ops/lora_rows_case.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/nf4_gemv_case.h"
#include "ops/gemm.h"
#include "ops/glu.h"

namespace engine::cuda {
namespace {

using namespace test;

// Poisoned but for the counters at its beginning, which a call leaves as zeros. For 64 rows of 4,160 values: calls of fewer take what they need of it.
struct Workspace {
  DeviceMemory memory{nf4_gemv_workspace(kGemvRows, 4160)};
  Workspace() { fill_bytes(memory.data(), 0, 4 * 4096, stream()); }
  GemvExtras extras() const {
    GemvExtras e;
    e.workspace = memory.data();
    e.same_order = true;
    return e;
  }
};

TEST("products of 1 to 64 rows with packed weights are the CPU's") {
  struct Case {
    std::int64_t b;
    std::vector<std::int64_t> n;
    std::int64_t k;
  };
  const Case cases[] = {{1, {1}, 64},      {5, {33}, 192},          {8, {300, 20}, 1088}, {9, {17, 16, 8}, 320}, {13, {130}, 2560},
                        {17, {48}, 640},   {32, {40, 24, 100}, 128}, {33, {129}, 192},     {64, {16}, 4160},     {50, {270}, 576}};
  const Workspace workspace;
  for (const Case& c : cases) {
    const Stack w(WeightKind::nf4_double, c.n, c.k);
    const auto x = random_bf16(c.b * c.k, 1), residual = random_bf16(c.b * w.outputs, 2), bias = random_bf16(w.outputs, 4);
    auto y = w.product(x, c.b);
    const DeviceRows device_x(x, c.b, c.k, 8), out(c.b, w.outputs, 8), onto(residual, c.b, w.outputs), device_bias(bias, 1, w.outputs);
    nf4_gemv(device_x.view(), w.packed, out.view(), workspace.extras(), stream());
    CHECK_ERROR(relative_error(out.read(), y), kRounding, c.b, " rows, ", w.outputs, "x", c.k);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = round_to_bf16(y[i] + bias[i % static_cast<std::size_t>(w.outputs)]) + residual[i];
    GemvExtras extras = workspace.extras();
    extras.bias = device_bias.view().data;
    extras.residual = onto.view();
    nf4_gemv(device_x.view(), w.packed, onto.view(), extras, stream());
    CHECK_ERROR(relative_error(onto.read(), y), kRounding, c.b, " rows, ", w.outputs, "x", c.k, " onto a residual");
  }
}

TEST("gated products of 1 to 64 rows with packed weights are the CPU's") {
  const std::int64_t cases[][3] = {{1, 8, 64}, {6, 136, 192}, {20, 24, 1088}, {64, 72, 320}};
  const Workspace workspace;
  for (const Activation act : {Activation::silu, Activation::gelu_tanh})
    for (const auto& [b, n, k] : cases) {
      const Stack w(WeightKind::nf4_double, {n, n}, k, true);
      const auto x = random_bf16(b * k, 1, 2.0f);
      const auto both = rounded(w.product(x, b));
      std::vector<float> y(static_cast<std::size_t>(b * n));
      glu_forward(cpu(), act, ConstRows(both.data(), b, n, 2 * n), ConstRows(both.data() + n, b, n, 2 * n), rows(y, b, n));
      const DeviceRows device_x(x, b, k, 8), out(b, n, 8);
      nf4_gemv_gated(act, device_x.view(), w.packed, out.view(), workspace.extras(), stream());
      CHECK_ERROR(relative_error(out.read(), y), kRounding, b, " rows, ", n, "x", k);
    }
}

TEST("products with packed weights add what each row's adapter says") {
  const std::int64_t k = 320;
  struct Case {
    std::int64_t rows, ranks;
    int adapters;
  };
  const Case cases[] = {{1, 24, 3}, {7, 24, 3}, {33, 24, 3}, {64, 16, 8}, {64, 64, 20}};
  const Workspace workspace;
  for (const bool gated : {false, true})
    for (const auto& [b, ranks, count] : cases) {
      const std::vector<std::int64_t> parts = gated ? std::vector<std::int64_t>{72, 72} : std::vector<std::int64_t>{100, 17, 16};
      const Stack w(WeightKind::nf4_double, parts, k, gated);
      const auto x = random_bf16(b * k, 1, 3.0f);
      auto sums = w.product(x, b);
      const AdapterCase adapters(b, k, parts, ranks, count);
      adapters.add(x, sums);
      const std::int64_t n = gated ? parts[0] : w.outputs;
      std::vector<float> y = sums;
      if (gated) {
        sums = rounded(sums);
        y.resize(static_cast<std::size_t>(b * n));
        glu_forward(cpu(), Activation::silu, ConstRows(sums.data(), b, n, 2 * n), ConstRows(sums.data() + n, b, n, 2 * n), rows(y, b, n));
      }
      const auto parts_count = static_cast<std::int64_t>(parts.size());
      const DeviceRows device_x(x, b, k, 8), out(b, n), low(b, parts_count * ranks);
      lora_rows_shrink(device_x.view(), {}, adapters.view(), low.view(), stream());
      GemvExtras extras = workspace.extras();
      extras.adapters = adapters.view();
      extras.low = low.view();
      if (gated)
        nf4_gemv_gated(Activation::silu, device_x.view(), w.packed, out.view(), extras, stream());
      else
        nf4_gemv(device_x.view(), w.packed, out.view(), extras, stream());
      CHECK_ERROR(relative_error(out.read(), y), kRounding, b, gated ? " gated rows" : " rows", " of ", count, " adapters");
    }
}

TEST("a row's result does not depend on how many rows there are, from 1 to 64, nor on their adapters") {
  const std::int64_t n = 150, k = 1344, ranks = 16;
  const Stack w(WeightKind::nf4_double, {n}, k);
  const Workspace workspace;
  const AdapterCase adapters(64, k, {n}, ranks);
  for (const bool adapted : {false, true}) {
    const auto product = [&](View<bf16> x, const std::int32_t* of) {
      const DeviceRows y(x.rows, n), low(x.rows, ranks);
      GemvExtras extras = workspace.extras();
      if (adapted) {
        extras.adapters = adapters.view();
        extras.adapters.adapter = of;
        extras.low = low.view();
        lora_rows_shrink(x, {}, extras.adapters, low.view(), stream());
      }
      nf4_gemv(x, w.packed, y.view(), extras, stream());
      return y.read();
    };
    const DeviceRows x(random_bf16(64 * k, 1), 64, k);
    const auto together = product(x.view(), adapters.view().adapter);
    for (const std::int64_t count : {1, 4, 8, 9, 16, 23, 32, 33}) {
      const auto alone = product(x.view().row_range(64 - count, count), adapters.view().adapter + 64 - count);
      CHECK(std::equal(alone.begin(), alone.end(), together.end() - count * n));
    }
  }
}

TEST("an adapter that is not finite spoils no row but its own") {
  const std::int64_t k = 64, n = 16, ranks = 8;
  const Stack w(WeightKind::nf4_double, {n}, k);
  const Workspace workspace;
  const DeviceRows x(random_bf16(3 * k, 1), 3, k), a(random_bf16(ranks * k, 2), ranks, k), good(random_bf16(n * ranks, 3), n, ranks);
  const DeviceRows bad(std::vector<float>(static_cast<std::size_t>(n * ranks), INFINITY), n, ranks), out(3, n), alone(3, n), low(3, ranks);
  const auto entry = [&](const DeviceRows& b) { return LoraEntry{a.view().data, b.view().data, ranks, 1.0f}; };
  const DeviceBuffer<LoraEntry> both(std::vector<LoraEntry>{entry(good), entry(bad)});
  const DeviceBuffer<std::int32_t> of(std::vector<std::int32_t>{0, 1, -1}), of_good(std::vector<std::int32_t>{0, -1, -1});
  for (const auto& [rows_of, y] : {std::pair{&of, &out}, std::pair{&of_good, &alone}}) {
    GemvExtras extras = workspace.extras();
    extras.adapters = {both.data(), rows_of->data(), 1, ranks};
    extras.low = low.view();
    lora_rows_shrink(x.view(), {}, extras.adapters, low.view(), stream());
    nf4_gemv(x.view(), w.packed, y->view(), extras, stream());
  }
  const auto with = out.read(), without = alone.read();
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    CHECK_EQ(with[i], without[i]);
    CHECK(!std::isfinite(with[static_cast<std::size_t>(n) + i]));
    CHECK_EQ(with[static_cast<std::size_t>(2 * n) + i], without[static_cast<std::size_t>(2 * n) + i]);
  }
}

}  // namespace
}  // namespace engine::cuda
