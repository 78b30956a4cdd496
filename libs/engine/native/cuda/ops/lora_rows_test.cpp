#include "cuda/ops/lora_rows.h"

#include "cuda/ops/lora_rows_case.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("rows with adapters of different ranks get what each adapter adds") {
  const std::int64_t k = 328, ranks = 24, outputs = 300 + 8 + 40;
  for (const std::int64_t rows_count : {1, 5, 70}) {
    const AdapterCase adapters(rows_count, k, {300, 8, 40}, ranks);
    const auto x = random_bf16(rows_count * k, 1), before = random_bf16(rows_count * outputs, 2);
    auto y = before;
    adapters.add(x, y);
    const DeviceRows device_x(x, rows_count, k, 8), low(rows_count, 3 * ranks, 8), out(before, rows_count, outputs, 8);
    lora_rows_shrink(device_x.view(), {}, adapters.view(), low.view(), stream());
    lora_rows_expand(low.view(), adapters.view(), adapters.columns(), out.view(), stream());
    const auto after = out.read();
    CHECK_ERROR(relative_error(after, y), kRounding, rows_count, " rows");
    if (rows_count > 1) CHECK(std::equal(after.begin(), after.begin() + outputs, before.begin()));  // the first has none
  }
}

}  // namespace
}  // namespace engine::cuda
