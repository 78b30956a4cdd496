#include "cuda/ops/logits.h"

#include <cmath>

#include "cuda/ops/op_test.h"

using namespace engine;
using namespace engine::cuda;
using namespace engine::cuda::test;

namespace {

std::vector<float> random_logits(std::int64_t n) {
  const Philox random{31, 0};
  std::vector<float> values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 30.0f * (random.uniform(i) - 0.5f);
  return values;
}

}  // namespace

TEST("log-probabilities of given tokens are those of fp64, and rows that are not asked for stay as they are") {
  for (const std::int64_t vocab : {1, 31, 513, 4097}) {
    const std::int64_t rows = 3;
    const std::vector<float> logits = random_logits(rows * vocab);
    const std::vector<std::uint32_t> targets{0, static_cast<std::uint32_t>(vocab - 1), static_cast<std::uint32_t>(vocab / 2)};
    const DeviceBuffer<float> device_logits(logits), out(std::vector<float>(3, 5.0f));
    const DeviceBuffer<std::uint32_t> device_targets(targets);
    const DeviceBuffer<std::int32_t> only(std::vector<std::int32_t>{0, -1, 0});
    log_probs({device_logits.data(), rows, vocab}, device_targets.data(), only.data(), out.data(), stream());
    const std::vector<float> found = out.read(stream());
    CHECK_EQ(found[1], 5.0f);
    for (const std::size_t r : {std::size_t{0}, std::size_t{2}}) {
      double sum = 0;
      const float* row = logits.data() + static_cast<std::int64_t>(r) * vocab;
      for (std::int64_t i = 0; i < vocab; ++i) sum += std::exp(double{row[i]});
      CHECK_CLOSE(found[r], double{row[targets[r]]} - std::log(sum), 2e-6 * 30);
    }
  }
}

TEST("a soft cap bends every logit, and none changes nothing") {
  const std::vector<float> logits = random_logits(2 * 4097);
  const DeviceBuffer<float> capped(logits), plain(logits);
  softcap_logits({capped.data(), 2, 4097}, 3.0f, stream());
  softcap_logits({plain.data(), 2, 4097}, 0.0f, stream());
  CHECK(plain.read(stream()) == logits);
  const std::vector<float> found = capped.read(stream());
  double worst = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::fabs(double{found[i]} - 3.0 * std::tanh(double{logits[i]} / 3.0)));
  CHECK(worst < 1e-6);
}
