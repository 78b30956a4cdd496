// gguf_parity.h: how far the numbers of an exported file are from those it was made of.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "export/streamed_decoder.h"

namespace engine {

struct GgufParity {
  // Over all tensors, each relative to its own scale: mean |Δ| / rms, and the largest |Δ| / max |w|.
  double weight_mean = 0, weight_max = 0;
  // Over the positions of the probe, the source (with its adapter) against the file, both computed in fp32:
  std::int64_t probe_tokens = 0;
  double logprob_mean = 0, logprob_max = 0;  // |Δ log p| of the probe's next token, nats
  double kl_mean = 0;                        // KL(source ‖ file) of the whole distribution, nats
  double top1_agreement = 0;                 // share of positions whose most likely token is the same
};

// Collects the first two numbers, tensor by tensor.
class WeightDistance {
 public:
  void begin_tensor();
  void add(const float* wanted, const float* stored, std::int64_t count);
  void end_tensor();
  double mean() const noexcept { return values_ == 0 ? 0 : mean_sum_ / static_cast<double>(values_); }
  double max() const noexcept { return max_; }

 private:
  double difference_ = 0, largest_difference_ = 0, square_ = 0, largest_ = 0;  // of the tensor at hand
  std::int64_t count_ = 0, values_ = 0;
  double mean_sum_ = 0, max_ = 0;
};

// `count` token ids that depend on the vocabulary's size alone.
std::vector<std::uint32_t> fixed_probe(std::int64_t vocab, std::int64_t count);

// The probe of an export when nobody gives another: 48 tokens, or what the context holds.
std::vector<std::uint32_t> export_probe(std::int64_t vocab, std::int64_t context);

// Sets the numbers of the probe. logits [T, vocab] of the same T tokens, T ≥ 2.
void compare_logits(std::span<const std::uint32_t> probe, std::int64_t vocab, const std::vector<float>& source, const std::vector<float>& file,
                    GgufParity& parity);

}  // namespace engine
