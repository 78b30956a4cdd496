// generator.h: continuous batching: any number of requests share one engine thread, one base and one paged key/value cache.
//   At every step each running sequence advances by one token, and waiting prompts are read in chunks beside them.
//   What a step computes is decided here and is the same on every device; a Runner computes it (runner.h). A sequence's tokens and log-probabilities are
//   the same bits whatever runs beside it and however its prompt is divided, if products sum in an order that does not depend on the number of rows
//   (GeneratorOptions::order).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "infer/hidden_pool.h"
#include "infer/kv_cache.h"
#include "infer/sampler.h"
#include "infer/runner.h"
#include "infer/scheduler.h"
#include "model/model.h"

namespace engine {

struct GenerateRequest {
  std::vector<std::uint32_t> tokens;             // the prompt, at least one
  std::shared_ptr<const LoraAdapter> adapter;    // null: the base alone
  Sampling sampling;
  Priority priority = Priority::interactive;
  std::optional<PrefixScope> scope{};            // whose cached beginnings it may use and leave; none: nothing of it outlives it
  std::int64_t generated = 0;                    // how many of the last tokens are output of an earlier request that this one goes on with
  // How many of the last tokens are to be scored, fewer than all; then nothing is generated: each of these is delivered as if it had been chosen, with
  // its log-probability, the last one with Finish::length. Of the sampling, top_logprobs alone counts.
  std::int64_t scored = 0;
  // Not none: nothing is generated; the tokens' hidden states after the final norm become one vector. Every token is read and nothing of it is remembered;
  // of the sampling nothing counts.
  Pooling pooling = Pooling::none;
};

struct GeneratedToken {
  std::uint32_t token = 0;
  float logprob = 0;              // of the model's own distribution, before any sampling setting
  std::vector<TokenLogprob> top;  // sampling.top_logprobs of them
  Finish finish = Finish::none;
  std::int64_t cached = 0;        // tokens before it that did not have to be read, since the sequence last began to run
};

// Called on the engine thread, in order; all must return soon and not throw. After on_end nothing more is called.
struct GenerateListener {
  std::function<void(const GeneratedToken&)> on_token;  // the last one carries the reason to finish
  std::function<void(const Error*)> on_end;             // null after a finish; else cancelled, oom, device_lost, internal, …
  std::function<void(std::vector<float>)> on_vector = nullptr;  // [hidden] what was pooled, once
};

// Follows what the cache remembers for whoever begins alike. Called on the engine thread, like GenerateListener.
struct CacheListener {
  // First all that is remembered (`whole`), then after each step what it changed, if anything.
  std::function<void(const std::vector<PrefixChange>&, bool whole)> on_changes;
  std::function<void()> on_end;  // the cache is gone, and everything in it
};

struct GeneratorOptions {
  std::int64_t max_running = 64;        // sequences in the cache at once
  std::int64_t prefill_tokens = 256;    // prompt tokens read in one step
  std::int64_t tokens_beside = 64;      // of one in which other sequences advance, all tokens (SchedulerLimits)
  std::int64_t most_growth = 1;         // times that, while much is left to read
  std::function<void()> on_step = nullptr;    // after each step, on the engine thread: what listeners heard may be passed on together
  std::int64_t kv_bytes = 0;            // cache size; 0 on the CPU: an eighth of the memory this process may use, at most what max_running full contexts need
  // fastest reads prompts about 5 % faster, but a sequence's last bits then depend on how many rows a step has.
  SumOrder order = SumOrder::same_for_any_rows;
};

struct GeneratorLoad {
  std::int64_t running = 0, waiting = 0;
  std::int64_t used_blocks = 0, total_blocks = 0;  // used: held by sequences; remembered ones that nobody holds are free
  std::int64_t preempted = 0;                      // so far
  std::int64_t prompt_tokens = 0, cached_tokens = 0;  // so far, of admitted sequences: to be read, and of these already there
  std::int64_t steps = 0;                          // so far: a heartbeat while there is work
};

class Generator {
 public:
  using RequestId = std::uint64_t;
  using WatchId = std::uint64_t;

  Generator(std::shared_ptr<Model> model, const GeneratorOptions& options);  // on the CPU
  // On the runner's device; of the options, kv_bytes and order were its maker's business.
  Generator(std::unique_ptr<Runner> runner, const GeneratorOptions& options);
  ~Generator();  // ends every request as cancelled, then joins the thread
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // From any thread. Throws invalid at once for a request that can never run: no tokens, an id outside the vocabulary, a prompt longer than the
  // context or the cache, sampling settings out of range, an adapter for another model; unsupported for an adapter that the device cannot run.
  RequestId submit(GenerateRequest request, GenerateListener listener);
  // From any thread; takes effect before the request's next token. Unknown and finished ids are ignored.
  void cancel(RequestId id);
  // From any thread. `unwatch_cache` takes effect before the next step; a call may be under way.
  WatchId watch_cache(CacheListener listener);
  void unwatch_cache(WatchId id);
  std::int64_t block_tokens() const noexcept { return cache_.block_tokens(); }
  GeneratorLoad load() const;
  std::string device() const { return runner_->device(); }
  std::string memory_table() const { return runner_->memory_table(); }

 private:
  struct Sequence {
    RequestId id = 0;
    GenerateListener listener;
    std::shared_ptr<const LoraAdapter> adapter;
    TokenSampler sampler;
    std::vector<std::uint32_t> tokens;  // prompt and generated
    std::int64_t prompt = 0;
    std::vector<std::int32_t> blocks;
    Priority priority = Priority::interactive;
    std::optional<PrefixScope> scope;
    std::int64_t computed = 0, cached = 0;  // tokens in the cache; of them, that were there when it began to run
    std::int64_t next_score = 0;            // position of the token to be scored next; 0: this sequence generates, or is pooled
    HiddenPool pool{};
    bool pools() const noexcept { return pool.pooling() != Pooling::none; }
  };

  void check_request(const GenerateRequest& request) const;
  static std::int64_t asked_rows(const Sequence& sequence, const StepPart& part);
  void run();
  bool take_commands();  // false when the generator is to stop
  void step();
  Step describe(const StepPlan& plan);  // borrows from the vectors below
  Want want_of(const Sequence& sequence) const;
  void deliver(const StepPlan& plan, const StepOutput& output);
  void deliver_states(Sequence& sequence, const StepPart& part, Rows states);
  // False when that was the sequence's end. `logits` only where they were wanted.
  bool deliver_token(Sequence& sequence, const ChosenToken& chosen, std::span<const float> logits);
  GeneratedToken take_token(Sequence& sequence, std::uint32_t token);
  void end(RequestId id, const Error* error);
  std::int64_t reuse(Sequence& sequence);
  void release(Sequence& sequence);
  void remember(const StepPlan& plan);
  void publish_load();
  void take_watchers();
  void tell_watchers();

  std::unique_ptr<Runner> runner_;
  GeneratorOptions options_;
  KvCache cache_;

  // The engine thread's own. Vectors keep their memory from step to step.
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  Scheduler scheduler_;
  std::vector<std::uint32_t> ids_, tokens_;
  std::vector<std::int32_t> positions_, lengths_;
  std::vector<KvRow> rows_;
  std::vector<KvSequence> kv_sequences_;
  std::vector<AdapterRows> adapters_;
  std::vector<WantedRow> wanted_;
  std::vector<float> losses_;
  std::map<WatchId, CacheListener> watchers_;
  std::vector<PrefixChange> journal_;  // while somebody watches: what the watchers have not been told

  // Shared with callers.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Sequence>> submitted_;
  std::vector<RequestId> cancelled_;
  std::map<WatchId, CacheListener> watching_;
  std::vector<WatchId> unwatched_;
  RequestId next_id_ = 1;
  bool stopping_ = false;
  GeneratorLoad load_;
  GeneratorLoad counts_;  // the engine thread's own
  std::thread thread_;
};

}  // namespace engine
