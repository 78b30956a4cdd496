// sampler.h: from a row of logits to a token.
//   constraint → logit bias → repetition, presence and frequency penalties → temperature → top-k → top-p → min-p → draw
//     constraint   z[t] = −∞ for tokens that do not continue the output; where it may end, the stop tokens are allowed
//     bias         z[t] += b                              for each listed token
//     repetition   z[t] = z[t] > 0 ? z[t] / r : z[t] · r  for tokens of prompt and output
//     presence     z[t] −= p                              for tokens of the output
//     frequency    z[t] −= f · (times in the output)
//     temperature  z / T; T = 0 is greedy: the largest z, the lowest id among equals, and nothing below applies
//     top-k        the k largest (and their equals);  top-p: the fewest largest whose probabilities reach p (and the last one's equals)
//     min-p        those with at least m times the largest probability
//   The draw is Philox(seed) at the token's position in the sequence: the same request gives the same tokens, whenever and beside whatever it runs.
//   Log-probabilities are of the model's distribution, before any of this.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "infer/constraint.h"

namespace engine {

struct LogitBias {
  std::uint32_t token = 0;
  float bias = 0;
};

struct Sampling {
  double temperature = 0;
  double top_p = 1;
  std::int64_t top_k = 0;  // 0: all
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 16;
  std::vector<std::uint32_t> stop_token_ids;
  std::vector<LogitBias> logit_bias;
  std::int64_t top_logprobs = 0;  // alternatives reported with each token
  std::shared_ptr<const Constraint> constraint;  // of the output; null: none
};

// Throws invalid naming the setting that is out of range.
void check_sampling(const Sampling& sampling, std::int64_t vocab);

struct TokenLogprob {
  std::uint32_t token = 0;
  float logprob = 0;
};

enum class Finish : std::uint8_t { none, stop, length, complete };  // complete: the constraint allows nothing more; the token belongs to the output

// The `count` most likely tokens, most likely first, the lower id first among equals. log_total = log Σ exp(logits).
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, std::int64_t count, double log_total);

// One sequence's sampling state.
class TokenSampler {
 public:
  // `context`: what the sequence begins with. Its last `generated` tokens count as output: of a sequence that goes on, not as prompt.
  TokenSampler(Sampling sampling, std::span<const std::uint32_t> context, std::int64_t generated = 0);

  // The token at `position` of the sequence. Non-finite logits give some token; the caller sees them by its log-probability.
  std::uint32_t choose(std::span<const float> logits, std::int64_t position);
  // Whether the constraint lets the output go on with, or end at, this token. False for what choose() gives when there is no such token: the
  // vocabulary cannot spell what is asked for.
  bool fits(std::uint32_t token) const;
  // Takes a token that fits into the output and says whether it is the last.
  Finish accept(std::uint32_t token);
  const Sampling& sampling() const noexcept { return sampling_; }

 private:
  bool adjusts() const noexcept;
  void adjust(std::span<float> logits) const;
  bool stops_at(std::uint32_t token) const;
  void mask(std::span<float> logits) const;
  std::uint32_t draw(std::span<float> logits, std::int64_t position) const;

  Sampling sampling_;
  bool penalizes_;                                        // any penalty is set
  std::unordered_map<std::uint32_t, std::int64_t> seen_;  // token → times in the output, 0 for those of the prompt alone; kept only for penalties
  std::int64_t generated_ = 0;
  ConstraintPlace place_;  // in the constraint
  std::vector<float> row_;  // scratch
};

}  // namespace engine
