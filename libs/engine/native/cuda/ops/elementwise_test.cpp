#include "cuda/ops/elementwise.h"

#include <algorithm>

#include "cuda/ops/op_test.h"
#include "ops/elementwise.h"

namespace engine::cuda {
namespace {

using namespace test;

const std::int64_t kShapes[][2] = {{0, 8}, {1, 1}, {3, 63}, {5, 65}, {2, 4097}, {7, 136}};

std::vector<float> rounded(std::vector<float> values) {
  for (float& value : values) value = round_to_bf16(value);
  return values;
}

TEST("dropout keeps the elements that the CPU keeps, and adds when asked to") {
  for (const auto& [t, n] : kShapes)
    for (const float p : {0.0f, 0.1f, 0.5f}) {
      const auto x = random_bf16(t * n, 1), before = random_bf16(t * n, 2);
      std::vector<float> expected(x.size());
      engine::dropout(cpu(), {77, 5}, p, rows(x, t, n), rows(expected, t, n));
      const DeviceBuffer<std::uint64_t> seed(std::vector<std::uint64_t>{77});
      const DeviceRows device(x, t, n, 8), out(t, n), sum(before, t, n);
      dropout(seed.data(), 5, p, device.view(), out.view(), false, stream());
      CHECK(out.read() == rounded(expected));
      dropout(seed.data(), 5, p, device.view(), sum.view(), true, stream());
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
      CHECK(sum.read() == rounded(expected));
    }
}

TEST("embedding noise is the stream's uniform words") {
  for (const auto& [t, n] : kShapes) {
    const auto x = random_bf16(t * n, 1);
    const auto magnitude = random_values(t, 2, 0.1f);
    const Philox words{91, 0};
    std::vector<float> expected = x;
    for (std::int64_t i = 0; i < t * n; ++i)
      expected[static_cast<std::size_t>(i)] +=
          magnitude[static_cast<std::size_t>(i / n)] * (2.0f * words.uniform(static_cast<std::uint64_t>(i)) - 1.0f);
    const DeviceBuffer<std::uint64_t> seed(std::vector<std::uint64_t>{91});
    const DeviceBuffer<float> device_magnitude(magnitude);
    const DeviceRows device(x, t, n);
    add_neftune_noise(seed.data(), device_magnitude.data(), device.view(), stream());
    CHECK(device.read() == rounded(expected));
  }
}

TEST("labelled rows are gathered and scattered back, others stay") {
  for (const std::int64_t n : {8, 65, 136}) {
    const auto x = random_bf16(5 * n, 1);
    const DeviceRows device(x, 5, n), gathered(4, n, 8), scattered(std::vector<float>(static_cast<std::size_t>(5 * n), 7.0f), 5, n);
    const DeviceBuffer<std::int32_t> numbers(std::vector<std::int32_t>{3, 0, -1, 4});
    gather_rows(device.view(), numbers.data(), gathered.view(), stream());
    scatter_rows(gathered.view(), numbers.data(), scattered.view(), stream());
    const auto got = gathered.read(), back = scattered.read();
    const std::vector<float> zeros(static_cast<std::size_t>(n), 0.0f), sevens(static_cast<std::size_t>(n), 7.0f);
    const auto same = [n](const std::vector<float>& a, std::int64_t i, const std::vector<float>& b, std::int64_t j) {
      return std::equal(a.begin() + i * n, a.begin() + (i + 1) * n, b.begin() + j * n);
    };
    CHECK(same(got, 0, x, 3));
    CHECK(same(got, 1, x, 0));
    CHECK(same(got, 2, zeros, 0));
    for (const std::int64_t r : {0, 3, 4}) CHECK(same(back, r, x, r));
    for (const std::int64_t r : {1, 2}) CHECK(same(back, r, sevens, 0));
  }
}

TEST("adding, filling and converting round once") {
  for (const auto& [t, n] : kShapes) {
    const auto x = random_values(t * n, 1), y = random_bf16(t * n, 2);
    const DeviceBuffer<float> device_x(x), wide = poisoned_floats(t * n);
    const DeviceRows narrowed(t, n), sum(y, t, n, 16);
    narrow_rows(View<const float>(device_x.data(), t, n), narrowed.view(), stream());
    CHECK(narrowed.read() == rounded(x));
    widen_rows(narrowed.view(), View<float>(wide.data(), t, n), stream());
    CHECK(wide.read(stream()) == rounded(x));
    add_scaled(narrowed.view(), 0.3f, sum.view(), stream());
    std::vector<float> expected = rounded(x);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = std::fma(0.3f, expected[i], y[i]);
    CHECK(sum.read() == rounded(expected));
    fill(sum.view(), 2.5f, stream());
    CHECK(sum.read() == std::vector<float>(static_cast<std::size_t>(t * n), 2.5f));
  }
}

}  // namespace
}  // namespace engine::cuda
