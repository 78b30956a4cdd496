#include "cuda/ops/sample.h"

#include <cmath>
#include <limits>

#include "cuda/ops/op_test.h"
#include "infer/sampler.h"

namespace engine::cuda {
namespace {

using namespace test;

struct Chosen {
  std::vector<std::uint32_t> tokens;
  std::vector<float> logprobs;
};

Chosen choose(const std::vector<float>& logits, std::int64_t vocab, const std::vector<SampleSettings>& settings, const std::vector<std::int32_t>& positions) {
  const auto n = static_cast<std::int64_t>(settings.size());
  const DeviceBuffer<float> device_logits(logits);
  const DeviceBuffer<SampleSettings> device_settings(settings);
  const DeviceBuffer<std::int32_t> device_positions(positions);
  const DeviceBuffer<std::uint32_t> tokens(std::vector<std::uint32_t>(static_cast<std::size_t>(n), 0xdeadu));
  const DeviceBuffer<float> logprobs = poisoned_floats(n);
  const DeviceMemory workspace(sample_workspace(n, vocab));
  sample(View<const float>(device_logits.data(), n, vocab), device_settings.data(), device_positions.data(), tokens.data(), logprobs.data(), workspace.data(), stream());
  return {tokens.read(stream()), logprobs.read(stream())};
}

std::uint32_t by_cpu(std::span<const float> logits, const SampleSettings& s, std::int64_t position) {
  Sampling sampling;
  sampling.temperature = s.temperature;
  sampling.top_p = s.top_p;
  sampling.min_p = s.min_p;
  sampling.top_k = s.top_k;
  sampling.seed = s.seed;
  TokenSampler sampler(sampling, {});
  return sampler.choose(logits, position);
}

TEST("tokens are the CPU's choice, with their log-probability") {
  const SampleSettings kinds[] = {{1, 0, 1, 0, 0},      {2, 1, 1, 0, 0},           {3, 0.6, 0.95, 0, 0},    {4, 1.5, 0.5, 0, 40},   {5, 0.7, 1, 0, 1},
                                  {6, 1, 1, 0.05, 0},   {7, 2, 0.9, 0.01, 20},     {8, 0.01, 0.9, 0, 0},    {9, 1, 0.9, 0, 1 << 20}, {10, 1, 0.001, 1, 3},
                                  {11, 1e-310, 1, 0, 0}, {12, 1e300, 0.5, 1e-9, 0}, {13, 0.8, 0.999999, 0, 0}, {14, 1, 1, 1e-7, 0},   {15, 0.9, 0.97, 0.001, 700}};
  enum class Shape : std::uint8_t { peaked, tied, flat, wide, masked };
  for (const std::int64_t vocab : {1, 63, 2049, 4200, 20001}) {
    std::vector<float> logits;
    std::vector<SampleSettings> settings;
    std::vector<std::int32_t> positions;
    for (const Shape shape : {Shape::peaked, Shape::tied, Shape::flat, Shape::wide, Shape::masked})
      for (const SampleSettings& kind : kinds) {
        if (vocab > 4200 && (kind.seed + static_cast<std::uint64_t>(shape)) % 4 != 0) continue;  // long rows: some of each
        // Where it is flat or wide, thresholds lie deep and what matters is much.
        auto row = random_values(vocab, settings.size() + 1, shape == Shape::flat ? 0.01f : shape == Shape::wide ? 4.0f : 12.0f);
        for (std::size_t i = 0; i < row.size(); ++i) {
          if (shape == Shape::tied) row[i] = std::round(row[i]);
          if (shape == Shape::masked && i % 3 != 1) row[i] = -std::numeric_limits<float>::infinity();
        }
        if (shape == Shape::masked && vocab == 1) row[0] = 0;
        logits.insert(logits.end(), row.begin(), row.end());
        settings.push_back(kind);
        settings.back().seed += 100 * static_cast<std::uint64_t>(shape);
        positions.push_back(static_cast<std::int32_t>(7 * settings.size()));
      }
    const Chosen got = choose(logits, vocab, settings, positions);
    for (std::size_t r = 0; r < settings.size(); ++r) {
      const std::span<const float> row(logits.data() + static_cast<std::int64_t>(r) * vocab, static_cast<std::size_t>(vocab));
      const std::uint32_t token = by_cpu(row, settings[r], positions[r]);
      if (token != got.tokens[r]) ::engine::test::report_failure(__FILE__, __LINE__, text("row ", r, " of ", vocab, ": ", got.tokens[r], ", the CPU has ", token));
      double total = 0;
      for (const float z : row) total += std::exp(static_cast<double>(z));
      CHECK(std::abs(got.logprobs[r] - (static_cast<double>(row[token]) - std::log(total))) < 1e-5);
    }
  }
}

TEST("a row that is not asked for is left alone, masked logits are never drawn, and a row that is not finite shows") {
  constexpr float never = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits{1, 2, 3, never, 5, never, 0, NAN, 1};
  const Chosen got = choose(logits, 3, {{1, 0, 1, 0, 0}, {1, 100, 1, 0, 0}, {1, 0, 1, 0, 0}}, {-1, 4, 4});
  // Fewer are left than top-k takes: top-p still counts.
  std::vector<float> few(16 * 40, never);
  std::vector<SampleSettings> settings;
  std::vector<std::int32_t> positions;
  for (std::size_t r = 0; r < 16; ++r) {
    for (std::size_t i = 0; i < 4; ++i) few[40 * r + 9 * i] = static_cast<float>(i);
    settings.push_back({r, 2, 0.6, 0, 20});
    positions.push_back(1);
  }
  const Chosen of_few = choose(few, 40, settings, positions);
  for (std::size_t r = 0; r < 16; ++r) CHECK_EQ(of_few.tokens[r], by_cpu(std::span(few).subspan(40 * r, 40), settings[r], 1));

  CHECK_EQ(got.tokens[0], 0xdeadu);
  CHECK(std::isnan(got.logprobs[0]));
  CHECK_EQ(got.tokens[1], 1u);
  CHECK_EQ(got.logprobs[1], 0.0f);
  CHECK(got.tokens[2] < 3u);
  CHECK(std::isnan(got.logprobs[2]));
}

}  // namespace
}  // namespace engine::cuda
