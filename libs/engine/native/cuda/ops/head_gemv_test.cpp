#include "cuda/ops/head_gemv.h"

#include <cmath>

#include "cuda/ops/op_test.h"
#include "ops/gemm.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("logits of few rows are the CPU's, and a row's do not depend on the others") {
  const std::int64_t cases[][3] = {{1, 1, 8}, {1, 129, 200}, {5, 300, 256}, {9, 1700, 136}, {17, 33, 128}, {64, 140, 328}};
  for (const auto& [b, v, k] : cases)
    for (const float softcap : {0.0f, 5.0f}) {
      const auto x = random_bf16(b * k, 1), head = random_bf16(v * k, 2);
      std::vector<float> expected(static_cast<std::size_t>(b * v));
      gemm_nt(cpu(), rows(x, b, k), rows(head, v, k), rows(expected, b, v));
      if (softcap > 0)
        for (float& z : expected) z = softcap * std::tanh(z / softcap);
      const DeviceRows device_x(x, b, k, 8), device_head(head, v, k);
      const DeviceBuffer<float> logits = poisoned_floats(b * (v + 3)), alone = poisoned_floats(v);
      head_gemv(device_x.view(), device_head.view(), softcap, View<float>(logits.data(), b, v, v + 3), stream());
      const auto padded = logits.read(stream());
      std::vector<float> got;
      for (std::int64_t r = 0; r < b; ++r) {
        got.insert(got.end(), padded.begin() + r * (v + 3), padded.begin() + r * (v + 3) + v);
        for (std::int64_t c = v; c < v + 3; ++c) CHECK(std::isnan(padded[static_cast<std::size_t>(r * (v + 3) + c)]));
      }
      CHECK_ERROR(relative_error(got, expected), 1e-6, b, " rows, ", v, "x", k);
      head_gemv(device_x.view().row_range(b - 1, 1), device_head.view(), softcap, View<float>(alone.data(), 1, v), stream());
      const auto last = alone.read(stream());
      CHECK(std::equal(last.begin(), last.end(), got.end() - v));
    }
}

}  // namespace
}  // namespace engine::cuda
