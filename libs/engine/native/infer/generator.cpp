#include "infer/generator.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/cpu_info.h"
#include "infer/host_runner.h"

namespace engine {
namespace {

std::int64_t cache_bytes(const Model& model, const GeneratorOptions& options) {
  if (options.kv_bytes > 0) return options.kv_bytes;
  const std::int64_t block = HostKvMemory::block_bytes(model.spec(), model.exec().compute), tokens = HostKvMemory::kBlockTokens;
  const std::int64_t full = options.max_running * ((model.spec().context + tokens - 1) / tokens);
  const std::int64_t affordable = available_memory_bytes() / 8 / block;
  return std::max<std::int64_t>(1, std::min(full, affordable)) * block;
}

// Whether keys depend on how long their sequence is: then those of one sequence are not another's.
bool rotates_by_length(const ModelSpec& spec) {
  return std::ranges::any_of(spec.ropes, [](const RopeParameters& rope) { return rope.type == RopeType::dynamic; });
}

const Error& cancelled_error() {
  static const Error error(Code::cancelled, "the generation was cancelled");
  return error;
}

const Error& broken_error() {
  static const Error error(Code::internal, "the model's logits or states are not finite; the weights or the adapter are broken");
  return error;
}

}  // namespace

Generator::Generator(std::shared_ptr<Model> model, const GeneratorOptions& options)
    : Generator(std::make_unique<HostRunner>(model, options.order, cache_bytes(*model, options)), options) {}

Generator::Generator(std::unique_ptr<Runner> runner, const GeneratorOptions& options)
    : runner_(std::move(runner)), options_(options), cache_(runner_->memory()),
      scheduler_({options.max_running, options.prefill_tokens, options.tokens_beside, options.most_growth},
                 {[this](std::uint64_t id, std::int64_t tokens) { return cache_.grow(sequences_.at(id)->blocks, tokens); },
                  [this](std::uint64_t id) { release(*sequences_.at(id)); }, [this](std::uint64_t id) { return reuse(*sequences_.at(id)); }}) {
  require(options.max_running >= 1, "max_running is ", options.max_running, "; use 1 or more");
  require(options.prefill_tokens >= 1, "prefill_tokens is ", options.prefill_tokens, "; use 1 or more");
  require(options.most_growth >= 1, "most_growth is ", options.most_growth, "; use 1 or more");
  load_.total_blocks = cache_.total_blocks();
  thread_ = std::thread([this] { run(); });
}

Generator::~Generator() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Generator::check_request(const GenerateRequest& request) const {
  const ModelSpec& spec = runner_->spec();
  const auto prompt = static_cast<std::int64_t>(request.tokens.size());
  require(prompt >= 1, "the prompt is empty; generation needs at least one token");
  require(request.scored >= 0 && request.scored < prompt, "scored is ", request.scored, " of ", prompt, " tokens; at least one must come before");
  const bool generates = request.scored == 0 && request.pooling == Pooling::none;
  require(request.scored == 0 || request.pooling == Pooling::none, "a request either scores or pools");
  require(generates || prompt <= spec.context, request.scored > 0 ? "prompt and continuation have " : "the text has ", prompt, " tokens; this model's context has ", spec.context);
  require(!generates || prompt < spec.context, "the prompt has ", prompt, " tokens; this model's context of ", spec.context, " leaves no room for an answer");
  for (std::size_t i = 0; i < request.tokens.size(); ++i)
    require(request.tokens[i] < spec.vocab, "the token id at position ", i, " is outside the vocabulary of ", spec.vocab);
  require(request.generated >= 0 && request.generated <= prompt, "generated is ", request.generated, " of ", prompt, " tokens");
  check_sampling(request.sampling, spec.vocab);
  const std::int64_t more = generates ? request.sampling.max_tokens : 0, longest = std::min(spec.context, prompt + more);
  require(cache_.blocks_for(longest) <= cache_.total_blocks(), "the prompt and its ", more, " tokens need ", cache_.blocks_for(longest), " cache blocks; the cache has ",
          cache_.total_blocks());
  if (request.adapter == nullptr) return;
  require(request.adapter->fits(spec), "the adapter was made for another model");
  runner_->check_adapter(*request.adapter);
}

Generator::RequestId Generator::submit(GenerateRequest request, GenerateListener listener) {
  check_request(request);
  auto sequence = std::make_unique<Sequence>(Sequence{0, std::move(listener), std::move(request.adapter), TokenSampler(std::move(request.sampling), request.tokens, request.generated),
                                                      std::move(request.tokens), 0, {}, request.priority, std::nullopt});
  sequence->pool = HiddenPool(request.pooling);
  if (!rotates_by_length(runner_->spec()) && !sequence->pools()) sequence->scope = request.scope;
  sequence->prompt = static_cast<std::int64_t>(sequence->tokens.size());
  if (request.scored > 0) sequence->next_score = sequence->prompt - request.scored;
  const std::lock_guard lock(mutex_);
  require(!stopping_, "the generator is closed");
  const RequestId id = sequence->id = next_id_++;
  submitted_.push_back(std::move(sequence));
  load_.waiting += 1;
  wake_.notify_one();
  return id;
}

void Generator::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
  wake_.notify_one();
}

Generator::WatchId Generator::watch_cache(CacheListener listener) {
  const std::lock_guard lock(mutex_);
  require(!stopping_, "the generator is closed");
  const WatchId id = next_id_++;
  watching_.emplace(id, std::move(listener));
  wake_.notify_one();
  return id;
}

void Generator::unwatch_cache(WatchId id) {
  const std::lock_guard lock(mutex_);
  unwatched_.push_back(id);
  wake_.notify_one();
}

// Before anything changes in this round: what a new watcher is told of is what was there when the others had been told everything.
void Generator::take_watchers() {
  std::map<WatchId, CacheListener> watching;
  std::vector<WatchId> unwatched;
  {
    const std::lock_guard lock(mutex_);
    watching.swap(watching_);
    unwatched.swap(unwatched_);
  }
  for (auto& [id, listener] : watching) {
    listener.on_changes(cache_.content(), true);
    watchers_.emplace(id, std::move(listener));
  }
  for (const WatchId id : unwatched) watchers_.erase(id);
  cache_.record(watchers_.empty() ? nullptr : &journal_);
}

void Generator::tell_watchers() {
  if (journal_.empty()) return;
  for (const auto& [id, listener] : watchers_) listener.on_changes(journal_, false);
  journal_.clear();
}

GeneratorLoad Generator::load() const {
  const std::lock_guard lock(mutex_);
  return load_;
}

void Generator::run() {
  while (take_commands()) {
    try {
      step();
    } catch (const Error& error) {
      // What failed is the step, so everything in it; the engine itself stays usable.
      while (!sequences_.empty()) end(sequences_.begin()->first, &error);
    } catch (const std::bad_alloc&) {
      const Error error(Code::oom, "out of memory while generating");
      while (!sequences_.empty()) end(sequences_.begin()->first, &error);
    }
    ++counts_.steps;
    publish_load();
    tell_watchers();
    if (options_.on_step) options_.on_step();
  }
  while (!sequences_.empty()) end(sequences_.begin()->first, &cancelled_error());
  for (const auto& [id, listener] : watchers_) listener.on_end();
  if (options_.on_step) options_.on_step();
}

std::int64_t Generator::reuse(Sequence& sequence) {
  sequence.cached = 0;
  // The last token is always read: its logits choose the next. So is the one before what is to be scored.
  const std::size_t most = sequence.next_score > 0 ? static_cast<std::size_t>(sequence.next_score) - 1 : sequence.tokens.size() - 1;
  if (sequence.scope) sequence.cached = cache_.reuse(*sequence.scope, std::span(sequence.tokens).first(most), sequence.blocks);
  sequence.computed = sequence.cached;
  return sequence.cached;
}

void Generator::release(Sequence& sequence) {
  if (sequence.scope && sequence.computed > 0)
    cache_.remember(*sequence.scope, std::span(sequence.tokens).first(static_cast<std::size_t>(sequence.computed)), sequence.blocks, true);
  sequence.computed = 0;
  sequence.pool.clear();  // what was read is read again
  cache_.release(sequence.blocks);
}

void Generator::remember(const StepPlan& plan) {
  for (const StepPart& part : plan.parts) {
    Sequence& sequence = *sequences_.at(part.sequence);
    const std::int64_t before = sequence.computed;
    sequence.computed = part.first + part.count;
    if (part.first == sequence.cached && before == sequence.cached) {
      counts_.prompt_tokens += static_cast<std::int64_t>(sequence.tokens.size());
      counts_.cached_tokens += sequence.cached;
    }
    if (sequence.scope && sequence.computed / cache_.block_tokens() > before / cache_.block_tokens())
      cache_.remember(*sequence.scope, std::span(sequence.tokens).first(static_cast<std::size_t>(sequence.computed)), sequence.blocks, false);
  }
}

bool Generator::take_commands() {
  std::deque<std::unique_ptr<Sequence>> submitted;
  std::vector<RequestId> cancelled;
  bool stopping = false;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopping_ || !submitted_.empty() || !cancelled_.empty() || !watching_.empty() || !unwatched_.empty() || !scheduler_.idle(); });
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    stopping = stopping_;
  }
  take_watchers();
  for (std::unique_ptr<Sequence>& sequence : submitted) {
    const RequestId id = sequence->id;
    const auto prompt = sequence->prompt - (sequence->next_score > 0 ? 1 : 0);  // nothing is asked of the last token to be scored
    sequences_.emplace(id, std::move(sequence));
    const Priority priority = sequences_.at(id)->priority;
    scheduler_.add(id, prompt, priority);
  }
  for (const RequestId id : cancelled)
    if (sequences_.contains(id)) end(id, &cancelled_error());
  return !stopping;
}

void Generator::step() {
  StepPlan plan = scheduler_.plan();
  if (plan.parts.empty()) return;
  // Rows of one adapter lie together, so each adapter's products are as wide as they can be.
  std::ranges::stable_sort(plan.parts, std::less<>{}, [this](const StepPart& part) { return sequences_.at(part.sequence)->adapter.get(); });
  const std::unique_ptr<Model::Turn> turn = runner_->turn();
  counts_.preempted += static_cast<std::int64_t>(plan.preempted.size());
  const StepOutput output = runner_->run(describe(plan));
  remember(plan);
  deliver(plan, output);
}

// How many rows of the part, its last ones, are asked for what follows them.
std::int64_t Generator::asked_rows(const Sequence& sequence, const StepPart& part) {
  if (sequence.pool.pooling() == Pooling::mean) return part.count;
  if (sequence.next_score == 0) return part.samples ? 1 : 0;
  return std::clamp<std::int64_t>(part.first + part.count - (sequence.next_score - 1), 0, part.count);
}

Want Generator::want_of(const Sequence& sequence) const {
  const Sampling& sampling = sequence.sampler.sampling();
  if (sequence.pools()) return Want::hidden;
  if (sequence.next_score > 0) return sampling.top_logprobs > 0 ? Want::logits : Want::score;
  return runner_->chooses(sampling) ? Want::choice : Want::logits;
}

Step Generator::describe(const StepPlan& plan) {
  ids_.clear();
  positions_.clear();
  lengths_.clear();
  rows_.clear();
  kv_sequences_.clear();
  adapters_.clear();
  wanted_.clear();
  for (const StepPart& part : plan.parts) {
    const Sequence& sequence = *sequences_.at(part.sequence);
    const auto index = static_cast<std::int32_t>(kv_sequences_.size());
    kv_sequences_.push_back({sequence.blocks});
    if (adapters_.empty() || adapters_.back().adapter != sequence.adapter) adapters_.push_back({static_cast<std::int64_t>(ids_.size()), 0, sequence.adapter});
    adapters_.back().count += part.count;
    for (std::int64_t position = part.first; position < part.first + part.count; ++position) {
      ids_.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      positions_.push_back(static_cast<std::int32_t>(position));
      lengths_.push_back(static_cast<std::int32_t>(std::max(sequence.prompt, position + 1)));
      rows_.push_back({index, static_cast<std::int32_t>(position)});
    }
    for (std::int64_t i = asked_rows(sequence, part); i > 0; --i) {
      WantedRow wanted{.row = static_cast<std::int64_t>(ids_.size()) - i, .want = want_of(sequence), .sampling = &sequence.sampler.sampling()};
      wanted.position = part.first + part.count - i + 1;
      if (sequence.next_score > 0) wanted.target = sequence.tokens[static_cast<std::size_t>(wanted.position)];
      wanted_.push_back(wanted);
    }
  }
  return {ids_, positions_, lengths_, rows_, kv_sequences_, adapters_, wanted_};
}

void Generator::deliver(const StepPlan& plan, const StepOutput& output) {
  // First the choices that are made here.
  const auto row = [&](std::size_t i) { return std::span<const float>(output.logits.row(static_cast<std::int64_t>(i)), static_cast<std::size_t>(output.logits.cols)); };
  tokens_.clear();
  std::size_t wanted = 0;
  for (const StepPart& part : plan.parts) {
    Sequence& sequence = *sequences_.at(part.sequence);
    for (std::int64_t k = asked_rows(sequence, part); k > 0; --k) {
      const WantedRow& asked = wanted_[wanted++];
      if (asked.want == Want::logits) tokens_.push_back(sequence.next_score > 0 ? asked.target : sequence.sampler.choose(row(tokens_.size()), asked.position));
    }
  }
  losses_.resize(tokens_.size());
  if (!tokens_.empty()) runner_->losses(output.logits, tokens_, losses_);  // −log p of each choice

  std::size_t from_logits = 0, chosen = 0;
  std::int64_t states = 0;
  wanted = 0;
  for (const StepPart& part : plan.parts) {
    Sequence& sequence = *sequences_.at(part.sequence);
    const std::int64_t asked = asked_rows(sequence, part);
    if (sequence.pools()) {
      wanted += static_cast<std::size_t>(asked);
      deliver_states(sequence, part, {output.hidden.row(states), asked, output.hidden.cols, output.hidden.stride});
      states += asked;
      continue;
    }
    bool goes_on = true;
    for (std::int64_t k = asked; k > 0; --k) {
      const bool has_logits = wanted_[wanted++].want == Want::logits;
      const std::size_t at = has_logits ? from_logits++ : chosen++;
      if (!goes_on) continue;
      goes_on = has_logits ? deliver_token(sequence, {tokens_[at], -losses_[at]}, row(at)) : deliver_token(sequence, output.chosen[at], {});
    }
  }
}

// The part's states, of which there may be none; with its last token the sequence ends.
void Generator::deliver_states(Sequence& sequence, const StepPart& part, Rows states) {
  for (std::int64_t i = 0; i < states.rows; ++i) sequence.pool.add(std::span<const float>(states.row(i), static_cast<std::size_t>(states.cols)));
  if (!part.samples) return;
  std::vector<float> vector = sequence.pool.vector();
  if (!std::ranges::all_of(vector, [](float value) { return std::isfinite(value); })) {
    end(sequence.id, &broken_error());
    return;
  }
  sequence.listener.on_vector(std::move(vector));
  end(sequence.id, nullptr);
}

bool Generator::deliver_token(Sequence& sequence, const ChosenToken& chosen, std::span<const float> logits) {
  if (!std::isfinite(chosen.logprob)) {
    cache_.forget(sequence.blocks);  // what it computed may be broken too
    sequence.scope.reset();
    end(sequence.id, &broken_error());
    return false;
  }
  if (sequence.next_score == 0 && !sequence.sampler.fits(chosen.token)) {
    const Error error(Code::unsupported, "the constraint cannot be met: this model's vocabulary has no token that continues the answer");
    end(sequence.id, &error);
    return false;
  }
  GeneratedToken token = take_token(sequence, chosen.token);
  token.logprob = chosen.logprob;
  const std::int64_t wanted = sequence.sampler.sampling().top_logprobs;
  if (wanted > 0) token.top = top_logprobs(logits, wanted, static_cast<double>(logits[chosen.token]) - chosen.logprob);
  sequence.listener.on_token(token);
  if (token.finish == Finish::none) return true;
  end(sequence.id, nullptr);
  return false;
}

// The token becomes the sequence's next one, or, where it is given, the next one that is scored.
GeneratedToken Generator::take_token(Sequence& sequence, std::uint32_t token) {
  GeneratedToken taken{.token = token, .top = {}, .cached = sequence.cached};
  const auto size = [&] { return static_cast<std::int64_t>(sequence.tokens.size()); };
  if (sequence.next_score > 0) {
    if (++sequence.next_score == size()) taken.finish = Finish::length;
    return taken;
  }
  taken.finish = sequence.sampler.accept(token);
  sequence.tokens.push_back(token);
  scheduler_.append(sequence.id);
  if (taken.finish == Finish::none && size() >= runner_->spec().context) taken.finish = Finish::length;
  return taken;
}

void Generator::end(RequestId id, const Error* error) {
  scheduler_.remove(id);
  const std::unique_ptr<Sequence> sequence = std::move(sequences_.at(id));
  sequences_.erase(id);
  publish_load();  // whoever hears of the end sees its blocks free
  sequence->listener.on_end(error);
}

void Generator::publish_load() {
  const std::lock_guard lock(mutex_);
  load_ = counts_;
  load_.running = scheduler_.running();
  load_.waiting = scheduler_.waiting() + static_cast<std::int64_t>(submitted_.size());
  load_.total_blocks = cache_.total_blocks();
  load_.used_blocks = cache_.total_blocks() - cache_.free_blocks();
}

}  // namespace engine
