#include "cuda/ops/dora_rows.h"

#include <cmath>

#include "cuda/ops/lora_rows_case.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/nf4_gemv_case.h"
#include "ops/glu.h"

namespace engine::cuda {
namespace {

using namespace test;

// Row r has adapter r % 4 - 1: none, or one of three, the first without magnitudes, the others with them in all parts but number adapter % parts.
struct FactorCase {
  std::vector<std::int64_t> outputs;
  std::vector<std::vector<float>> host;  // [adapter · parts]; empty: none
  std::vector<DeviceBuffer<float>> device;
  DeviceBuffer<const float*> table;
  std::vector<std::int32_t> of;
  DeviceBuffer<std::int32_t> device_of;

  FactorCase(std::int64_t rows, std::vector<std::int64_t> sizes) : outputs(std::move(sizes)) {
    const std::size_t parts = outputs.size();
    std::vector<const float*> pointers;
    for (std::size_t a = 0; a < 3; ++a)
      for (std::size_t p = 0; p < parts; ++p) {
        const bool has = a > 0 && (parts == 1 || p != a % parts);
        host.push_back(has ? random_values(outputs[p], 60 + a * parts + p) : std::vector<float>());
        device.emplace_back(host.back());
        pointers.push_back(has ? device.back().data() : nullptr);
      }
    table = DeviceBuffer<const float*>(pointers);
    for (std::int64_t r = 0; r < rows; ++r) of.push_back(static_cast<std::int32_t>(r % 4) - 1);
    device_of = DeviceBuffer<std::int32_t>(of);
  }

  RowFactors view() const { return {table.data(), device_of.data(), static_cast<std::int64_t>(outputs.size())}; }
  LoraColumns columns() const {
    LoraColumns c{};
    for (std::size_t p = 0; p < outputs.size(); ++p) c.first_output[p + 1] = c.first_output[p] + outputs[p];
    return c;
  }
  // c of row r and output n of part p, null where there is none.
  const float* at(std::size_t r, std::size_t p, std::size_t n) const {
    const std::vector<float>* factor = of[r] < 0 ? nullptr : &host[static_cast<std::size_t>(of[r]) * outputs.size() + p];
    return factor == nullptr || factor->empty() ? nullptr : factor->data() + n;
  }
};

TEST("products are scaled where a row's adapter has magnitudes, but for their bias; other rows and projections keep their bits") {
  const std::int64_t outputs = 1032 + 8 + 40;
  for (const std::int64_t t : {0, 1, 6, 37}) {
    const FactorCase factors(t, {1032, 8, 40});
    const auto before = random_bf16(t * outputs, 1), bias = random_bf16(outputs, 2);
    std::vector<float> expected = before;
    for (std::size_t r = 0, i = 0; r < static_cast<std::size_t>(t); ++r)
      for (std::size_t p = 0, column = 0; p < 3; ++p)
        for (std::size_t n = 0; n < static_cast<std::size_t>(factors.outputs[p]); ++n, ++column, ++i)
          if (const float* c = factors.at(r, p, n)) expected[i] = round_to_bf16(std::fma(*c, before[i] - bias[column], bias[column]));
    const DeviceRows y(before, t, outputs, 8), device_bias(bias, 1, outputs);
    dora_rows_scale(factors.view(), factors.columns(), device_bias.view().data, {}, y.view(), stream());
    CHECK(y.read() == expected);
  }
}

TEST("what a scaled product adds to waits aside, and is added to the rounded product") {
  const std::int64_t t = 9, n = 1048;
  const FactorCase factors(t, {n});
  const auto before = random_bf16(t * n, 1), product = random_bf16(t * n, 2);
  const DeviceRows y(before, t, n, 8), aside(t, n);
  dora_rows_set_aside(factors.view(), y.view(), aside.view(), stream());
  std::vector<float> waiting = y.read(), expected = before;
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    const float* c = factors.at(i / n, 0, i % n);
    CHECK_EQ(waiting[i], c != nullptr ? 0.0f : before[i]);
    waiting[i] = c != nullptr ? product[i] : before[i];
    if (c != nullptr) expected[i] = round_to_bf16(before[i] + round_to_bf16(*c * product[i]));
  }
  const DeviceRows multiplied(waiting, t, n, 8);
  dora_rows_scale(factors.view(), factors.columns(), nullptr, aside.view(), multiplied.view(), stream());
  CHECK(multiplied.read() == expected);
}

TEST("gate and up of a packed weight's tiles are summed, scaled and biased before the activation, of all rows or of scaled ones alone") {
  const std::int64_t t = 7, f = 136, k = 192, ranks = 24;
  const Stack w(WeightKind::nf4, {f, f}, k, true);
  const FactorCase factors(t, {f, f});
  const AdapterCase adapters(t, k, {f, f}, ranks);
  const auto x = random_bf16(t * k, 1), bias = random_bf16(2 * f, 2), untouched = random_bf16(t * f, 3);
  auto both = w.product(x, t);
  adapters.add(x, both);
  for (std::size_t i = 0; i < both.size(); ++i) {
    const std::size_t r = i / (2 * f), column = i % (2 * f);
    const float* c = factors.at(r, column / f, column % f);
    both[i] = round_to_bf16((c != nullptr ? *c : 1.0f) * both[i] + bias[column]);
  }
  const DeviceRows device_x(x, t, k, 8), device_bias(bias, 1, 2 * f), tiles(t, 2 * f, 8), low(t, 2 * ranks);
  lora_rows_shrink(device_x.view(), {}, adapters.view(), low.view(), stream());
  const DeviceMemory workspace(nf4_gemv_workspace(t, k));
  fill_bytes(workspace.data(), 0, workspace.bytes(), stream());
  nf4_gemv(device_x.view(), nf4_tiles(w.packed), tiles.view(), {.workspace = workspace.data()}, stream());
  for (const Activation act : {Activation::silu, Activation::gelu_tanh}) {
    std::vector<float> expected(static_cast<std::size_t>(t * f));
    glu_forward(cpu(), act, Rows(both.data(), t, f, 2 * f), Rows(both.data() + f, t, f, 2 * f), rows(expected, t, f));
    for (const GatedRows which : {GatedRows::all, GatedRows::scaled}) {
      const DeviceRows y(untouched, t, f, 16);
      dora_rows_gated(act, {tiles.view(), {w.packed.unit[0], w.packed.unit[1]}, device_bias.view().data}, low.view(), adapters.view(), factors.view(), which, y.view(), stream());
      const std::vector<float> after = y.read();
      for (std::size_t r = 0; r < static_cast<std::size_t>(t); ++r) {
        const auto row = [&](const std::vector<float>& of) { return std::vector<float>(of.begin() + static_cast<std::ptrdiff_t>(r * f), of.begin() + static_cast<std::ptrdiff_t>((r + 1) * f)); };
        const bool scaled = factors.at(r, 0, 0) != nullptr || factors.at(r, 1, 0) != nullptr;
        if (which == GatedRows::scaled && !scaled)
          CHECK(row(after) == row(untouched));
        else
          CHECK_ERROR(relative_error(row(after), row(expected)), 2 * kRounding, "row ", r);
      }
    }
  }
}

}  // namespace
}  // namespace engine::cuda
