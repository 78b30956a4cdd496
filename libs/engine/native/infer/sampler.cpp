#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "core/rng.h"

namespace engine {
namespace {

std::uint32_t largest(std::span<const float> logits) {
  return static_cast<std::uint32_t>(std::ranges::max_element(logits) - logits.begin());  // the first of equals
}

}  // namespace

void check_sampling(const Sampling& s, std::int64_t vocab) {
  require(std::isfinite(s.temperature) && s.temperature >= 0, "temperature is ", s.temperature, "; use 0 (greedy) or more");
  require(s.top_p > 0 && s.top_p <= 1, "top_p is ", s.top_p, "; use a value above 0, up to 1");
  require(s.top_k >= 0, "top_k is ", s.top_k, "; use 0 (all) or more");
  require(s.min_p >= 0 && s.min_p <= 1, "min_p is ", s.min_p, "; use a value from 0 to 1");
  require(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0, "the repetition penalty is ", s.repetition_penalty, "; use a value above 0");
  require(std::isfinite(s.presence_penalty), "the presence penalty is not finite");
  require(std::isfinite(s.frequency_penalty), "the frequency penalty is not finite");
  require(s.max_tokens >= 1, "max_tokens is ", s.max_tokens, "; use 1 or more");
  require(s.top_logprobs >= 0 && s.top_logprobs <= 1000, "logprobs is ", s.top_logprobs, "; use a value from 0 to 1000");
  for (const std::uint32_t token : s.stop_token_ids)
    require(token < vocab, "the stop token id ", token, " is outside the vocabulary of ", vocab);
  for (const LogitBias& bias : s.logit_bias) {
    require(bias.token < vocab, "the logit bias names token ", bias.token, ", which is outside the vocabulary of ", vocab);
    require(std::isfinite(bias.bias), "the logit bias of token ", bias.token, " is not finite");
  }
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, std::int64_t count, double log_total) {
  std::vector<TokenLogprob> top;  // a heap of the best so far would save little for the few that are asked for
  const auto wanted = static_cast<std::size_t>(std::min<std::int64_t>(count, static_cast<std::int64_t>(logits.size())));
  const auto before = [](const TokenLogprob& a, const TokenLogprob& b) { return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token); };
  for (std::size_t t = 0; t < logits.size(); ++t) {
    const TokenLogprob candidate{static_cast<std::uint32_t>(t), logits[t]};
    if (top.size() == wanted && (wanted == 0 || !before(candidate, top.back()))) continue;
    if (top.size() == wanted) top.pop_back();
    top.insert(std::ranges::upper_bound(top, candidate, before), candidate);
  }
  for (TokenLogprob& item : top) item.logprob = static_cast<float>(item.logprob - log_total);
  return top;
}

TokenSampler::TokenSampler(Sampling sampling, std::span<const std::uint32_t> context, std::int64_t generated)
    : sampling_(std::move(sampling)),
      penalizes_(sampling_.repetition_penalty != 1 || sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0) {
  if (!penalizes_) return;
  const std::size_t prompt = context.size() - static_cast<std::size_t>(generated);
  for (const std::uint32_t token : context.first(prompt)) seen_.emplace(token, 0);
  for (const std::uint32_t token : context.subspan(prompt)) ++seen_[token];
}

bool TokenSampler::adjusts() const noexcept { return penalizes_ || !sampling_.logit_bias.empty() || sampling_.constraint != nullptr; }

bool TokenSampler::stops_at(std::uint32_t token) const { return std::ranges::find(sampling_.stop_token_ids, token) != sampling_.stop_token_ids.end(); }

bool TokenSampler::fits(std::uint32_t token) const {
  const Constraint* constraint = sampling_.constraint.get();
  if (constraint == nullptr) return true;
  return stops_at(token) ? constraint->accepting(place_) : constraint->advance(place_, token).has_value();
}

void TokenSampler::mask(std::span<float> logits) const {
  const Constraint& constraint = *sampling_.constraint;
  const auto allowed = constraint.allowed(place_);
  const bool may_end = constraint.accepting(place_);
  std::vector<std::pair<std::uint32_t, float>> ends;  // few; a stop token may also spell text
  if (may_end)
    for (const std::uint32_t token : sampling_.stop_token_ids) ends.emplace_back(token, logits[token]);
  constexpr float never = -std::numeric_limits<float>::infinity();
  for (std::size_t t = 0; t < logits.size(); ++t)
    if (!allowed->has(static_cast<std::uint32_t>(t))) logits[t] = never;
  for (const std::uint32_t token : sampling_.stop_token_ids) logits[token] = never;
  for (const auto& [token, z] : ends) logits[token] = z;
}

void TokenSampler::adjust(std::span<float> logits) const {
  for (const LogitBias& bias : sampling_.logit_bias) logits[bias.token] += bias.bias;
  const auto repetition = static_cast<float>(sampling_.repetition_penalty);
  for (const auto& [token, times] : seen_) {
    float& z = logits[token];
    z = z > 0 ? z / repetition : z * repetition;
    if (times > 0) z -= static_cast<float>(sampling_.presence_penalty + sampling_.frequency_penalty * static_cast<double>(times));
  }
}

std::uint32_t TokenSampler::choose(std::span<const float> logits, std::int64_t position) {
  if (sampling_.temperature == 0 && !adjusts()) return largest(logits);
  row_.assign(logits.begin(), logits.end());
  if (sampling_.constraint != nullptr) mask(row_);
  adjust(row_);
  return sampling_.temperature == 0 ? largest(row_) : draw(row_, position);
}

Finish TokenSampler::accept(std::uint32_t token) {
  ++generated_;
  if (penalizes_) ++seen_[token];
  if (stops_at(token)) return Finish::stop;
  if (sampling_.constraint != nullptr) {
    auto place = sampling_.constraint->advance(std::move(place_), token);
    if (!place || sampling_.constraint->complete(*place)) return Finish::complete;
    place_ = *std::move(place);
  }
  return generated_ >= sampling_.max_tokens ? Finish::length : Finish::none;
}

std::uint32_t TokenSampler::draw(std::span<float> row, std::int64_t position) const {
  // From logits to masses: probabilities relative to the largest, which is 1.
  const float top = row[largest(row)];
  const double temperature = sampling_.temperature;
  for (float& z : row) z = static_cast<float>(std::exp((static_cast<double>(z) - top) / temperature));
  float least = std::numeric_limits<float>::denorm_min();  // what a token must have to be kept: more than what is masked

  std::vector<float> sorted;  // descending as far as it was needed
  const auto sort_first = [&](std::size_t count) {
    if (sorted.empty()) sorted.assign(row.begin(), row.end());
    count = std::min(count, sorted.size());
    const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(count);
    if (end != sorted.end()) std::ranges::nth_element(sorted, end, std::ranges::greater{});
    std::sort(sorted.begin(), end, std::greater{});
    return count;
  };
  if (sampling_.top_k > 0 && sampling_.top_k < static_cast<std::int64_t>(row.size())) {
    const std::size_t count = sort_first(static_cast<std::size_t>(sampling_.top_k));
    least = sorted[count - 1];
  }
  const auto kept_total = [&] {
    double total = 0;
    for (const float mass : row)
      if (mass >= least) total += mass;
    return total;
  };
  if (sampling_.top_p < 1) {
    const double wanted = sampling_.top_p * kept_total();
    double reached = 0;
    std::size_t ready = sort_first(256), i = 0;
    for (; reached < wanted && i < sorted.size(); ++i) {
      if (i == ready) ready = sort_first(4 * ready);  // few distributions need more than the first 256
      reached += sorted[i];
    }
    least = std::max(least, sorted[std::max<std::size_t>(i, 1) - 1]);
  }
  least = std::max(least, static_cast<float>(sampling_.min_p));

  const PhiloxBlock words = Philox{sampling_.seed, 0}.block(static_cast<std::uint64_t>(position));
  const double uniform = static_cast<double>((std::uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
  const double target = uniform * kept_total();
  double cumulative = 0;
  std::uint32_t last = 0;
  for (std::size_t t = 0; t < row.size(); ++t) {
    if (!(row[t] >= least)) continue;
    cumulative += row[t];
    last = static_cast<std::uint32_t>(t);
    if (cumulative > target) break;
  }
  return last;
}

}  // namespace engine
