#include "infer/host_runner.h"

#include <algorithm>
#include <cstring>

#include "core/cpu_info.h"
#include "core/error.h"
#include "ops/cross_entropy.h"

namespace engine {
namespace {

Exec with_order(Exec ex, SumOrder order) {
  ex.order = order;
  return ex;
}

}  // namespace

HostRunner::HostRunner(std::shared_ptr<Model> model, SumOrder order, std::int64_t kv_bytes)
    : model_(std::move(model)), exec_(with_order(model_->exec(), order)), memory_(model_->spec(), model_->exec().compute, kv_bytes), ropes_(model_->spec().ropes) {}

std::string HostRunner::device() const { return text("cpu (", isa_name(exec_.isa), ", ", exec_.pool.threads(), " threads)"); }

Rows HostRunner::logits_of(const Pass& pass, const Step& step, Rows hidden, Want want) {
  const auto count = static_cast<std::int64_t>(std::ranges::count(step.wanted, want, &WantedRow::want));
  if (count == 0) return {};
  const Rows last = arena_.rows(count, spec().hidden), logits = arena_.rows(count, spec().vocab);
  wanted_segments_.clear();
  std::size_t segment = 0;
  std::int64_t i = 0;
  for (const WantedRow& wanted : step.wanted) {
    if (wanted.want != want) continue;
    while (wanted.row >= segments_[segment].first + segments_[segment].count) ++segment;
    if (wanted_segments_.empty() || wanted_segments_.back().adapter != segments_[segment].adapter) wanted_segments_.push_back({i, 0, segments_[segment].adapter});
    wanted_segments_.back().count += 1;
    std::memcpy(last.row(i++), hidden.row(wanted.row), static_cast<std::size_t>(spec().hidden) * sizeof(float));
  }
  head_logits(pass, wanted_segments_, last, arena_.rows(count, spec().hidden), logits);            // [count, vocab]
  return logits;
}

Rows HostRunner::normed_of(const Pass& pass, const Step& step, Rows hidden) {
  const auto count = static_cast<std::int64_t>(std::ranges::count(step.wanted, Want::hidden, &WantedRow::want));
  if (count == 0) return {};
  const Rows rows = arena_.rows(count, spec().hidden), normed = arena_.rows(count, spec().hidden);
  std::int64_t i = 0;
  for (const WantedRow& wanted : step.wanted)
    if (wanted.want == Want::hidden) std::memcpy(rows.row(i++), hidden.row(wanted.row), static_cast<std::size_t>(spec().hidden) * sizeof(float));
  final_norm(pass, rows, normed);
  return normed;
}

StepOutput HostRunner::run(const Step& step) {
  segments_.clear();
  for (const AdapterRows& of : step.adapters) segments_.push_back({of.first, of.count, of.adapter.get()});
  arena_.reset();
  const Pass pass{.ex = exec_, .spec = spec(), .weights = model_->weights(), .ropes = ropes_, .arena = arena_, .adapters = segments_};
  ropes_.prepare(step.positions, step.lengths);
  CachedAttention attention(memory_, step.sequences, step.rows);
  const Rows hidden = hidden_states(pass, step.ids, attention);                                    // [rows, hidden]
  const Rows logits = logits_of(pass, step, hidden, Want::logits), scored = logits_of(pass, step, hidden, Want::score);
  targets_.clear();
  scores_.clear();
  for (const WantedRow& wanted : step.wanted)
    if (wanted.want == Want::score) targets_.push_back(wanted.target);
  losses_.resize(targets_.size());
  if (!targets_.empty()) losses(scored, targets_, losses_);
  for (std::size_t i = 0; i < targets_.size(); ++i) scores_.push_back({targets_[i], -losses_[i]});
  return {logits, scores_, normed_of(pass, step, hidden)};
}

void HostRunner::losses(Rows logits, std::span<const std::uint32_t> tokens, std::span<float> losses) {
  ones_.resize(tokens.size(), 1.0f);
  cross_entropy(exec_, logits, tokens, std::span(ones_).first(tokens.size()), 0.0f, LogitGradient::none, losses.data());
}

}  // namespace engine
