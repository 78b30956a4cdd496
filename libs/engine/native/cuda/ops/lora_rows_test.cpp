#include "cuda/ops/lora_rows.h"

#include "cuda/ops/glu.h"
#include "cuda/ops/lora_rows_case.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("rows with adapters of different ranks get what each adapter adds, whatever the other rows have") {
  const std::int64_t ranks = 24, outputs = 300 + 8 + 40;
  for (const auto& [k, rows_count] : {std::pair{328, 1}, {328, 5}, {328, 70}, {2200, 19}, {8200, 9}}) {
    const AdapterCase adapters(rows_count, k, {300, 8, 40}, ranks);
    const auto x = random_bf16(rows_count * k, 1), before = random_bf16(rows_count * outputs, 2);
    auto y = before;
    adapters.add(x, y);
    const DeviceRows device_x(x, rows_count, k, 8), low(rows_count, 3 * ranks, 8), out(before, rows_count, outputs, 8);
    lora_rows_shrink(device_x.view(), {}, adapters.view(), low.view(), stream());
    lora_rows_expand(low.view(), adapters.view(), adapters.columns(), out.view(), stream());
    const auto after = out.read();
    CHECK_ERROR(relative_error(after, y), kRounding, rows_count, " rows");
    if (rows_count == 1) continue;
    CHECK(std::equal(after.begin(), after.begin() + outputs, before.begin()));  // the first has none
    const DeviceRows alone(random_bf16(rows_count * outputs, 2), rows_count, outputs);
    const RowAdapters all = adapters.view(), second{all.entries, all.adapter + 2, all.parts, all.ranks};
    lora_rows_shrink(device_x.view().row_range(2, 1), {}, second, low.view().row_range(0, 1), stream());
    lora_rows_expand(low.view().row_range(0, 1), second, adapters.columns(), alone.view().row_range(2, 1), stream());
    const auto by_itself = alone.read();
    CHECK(std::equal(by_itself.begin() + 2 * outputs, by_itself.begin() + 3 * outputs, after.begin() + 2 * outputs));
  }
}

TEST("gated products with adapters have the bits of the activation of the sums, of rows without an adapter too") {
  const std::int64_t k = 160, ranks = 24, ffn = 296;
  for (const Activation act : {Activation::silu, Activation::gelu_tanh})
    for (const std::int64_t rows_count : {3, 70}) {
      const AdapterCase adapters(rows_count, k, {ffn, ffn}, ranks);
      const auto x = random_bf16(rows_count * k, 1);
      auto before = random_bf16(rows_count * 2 * ffn, 2);
      before[0] = 0.78515625f;  // of the first row, which has no adapter: a pair whose product rounds the other way where x / d stands for x · (1 / d)
      before[static_cast<std::size_t>(ffn)] = 1.7421875f;
      const DeviceRows device_x(x, rows_count, k, 8), low(rows_count, 2 * ranks, 8), summed(before, rows_count, 2 * ffn, 8), gate_up(before, rows_count, 2 * ffn, 8),
          expected(rows_count, ffn, 8), out(rows_count, ffn, 8);
      lora_rows_shrink(device_x.view(), {}, adapters.view(), low.view(), stream());
      lora_rows_expand(low.view(), adapters.view(), adapters.columns(), summed.view(), stream());
      glu_forward(act, summed.view(), expected.view(), stream());
      lora_rows_expand_gated(act, low.view(), adapters.view(), gate_up.view(), out.view(), stream());
      CHECK(out.read() == expected.read());
      CHECK(gate_up.read() == before);
    }
}

}  // namespace
}  // namespace engine::cuda
