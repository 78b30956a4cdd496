#include "export/gguf_parity.h"

#include <algorithm>
#include <cmath>

namespace engine {
namespace {

// log p of every token of one position.
std::vector<double> log_probabilities(const float* logits, std::int64_t vocab) {
  const double most = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (std::int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - most);
  const double shift = most + std::log(sum);
  std::vector<double> result(static_cast<std::size_t>(vocab));
  for (std::int64_t i = 0; i < vocab; ++i) result[static_cast<std::size_t>(i)] = logits[i] - shift;
  return result;
}

}  // namespace

void WeightDistance::begin_tensor() {
  difference_ = largest_difference_ = square_ = largest_ = 0;
  count_ = 0;
}

void WeightDistance::add(const float* wanted, const float* stored, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double difference = std::fabs(double{wanted[i]} - double{stored[i]});
    difference_ += difference;
    largest_difference_ = std::max(largest_difference_, difference);
    square_ += double{wanted[i]} * double{wanted[i]};
    largest_ = std::max(largest_, std::fabs(double{wanted[i]}));
  }
  count_ += count;
}

void WeightDistance::end_tensor() {
  values_ += count_;
  if (largest_ == 0) return;  // zeros are stored exactly by every type
  const double rms = std::sqrt(square_ / static_cast<double>(count_));
  mean_sum_ += difference_ / rms;
  max_ = std::max(max_, largest_difference_ / largest_);
}

std::vector<std::uint32_t> fixed_probe(std::int64_t vocab, std::int64_t count) {
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(count));
  std::uint64_t state = 20240229;
  for (std::uint32_t& id : ids) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    id = static_cast<std::uint32_t>((state >> 33) % static_cast<std::uint64_t>(vocab));
  }
  return ids;
}

std::vector<std::uint32_t> export_probe(std::int64_t vocab, std::int64_t context) {
  constexpr std::int64_t kProbeTokens = 48;
  return fixed_probe(vocab, std::clamp<std::int64_t>(context, 2, kProbeTokens));
}

void compare_logits(std::span<const std::uint32_t> probe, std::int64_t vocab, const std::vector<float>& source, const std::vector<float>& file,
                    GgufParity& parity) {
  const std::size_t positions = probe.size() - 1;
  double difference = 0, divergence = 0;
  std::int64_t same = 0;
  parity.logprob_max = 0;
  for (std::size_t t = 0; t < positions; ++t) {
    const float* from = source.data() + static_cast<std::int64_t>(t) * vocab;
    const float* to = file.data() + static_cast<std::int64_t>(t) * vocab;
    const std::vector<double> p = log_probabilities(from, vocab), q = log_probabilities(to, vocab);
    const std::size_t next = probe[t + 1];
    difference += std::fabs(p[next] - q[next]);
    parity.logprob_max = std::max(parity.logprob_max, std::fabs(p[next] - q[next]));
    for (std::size_t i = 0; i < p.size(); ++i) divergence += std::exp(p[i]) * (p[i] - q[i]);
    same += std::max_element(from, from + vocab) - from == std::max_element(to, to + vocab) - to;
  }
  const auto count = static_cast<double>(positions);
  parity.probe_tokens = static_cast<std::int64_t>(probe.size());
  parity.logprob_mean = difference / count;
  parity.kl_mean = std::max(0.0, divergence / count);  // rounding can leave a sum of zeros a hair below
  parity.top1_agreement = static_cast<double>(same) / count;
}

}  // namespace engine
