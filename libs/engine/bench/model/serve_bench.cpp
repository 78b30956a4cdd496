#include "model/serve_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <latch>
#include <mutex>
#include <random>

#include "core/error.h"
#include "core/json.h"
#include "core/rng.h"
#include "infer/generator.h"
#include "infer/host_runner.h"
#include "model/bench_model.h"
#include "model/random_base.h"
#include "support/bench.h"
#include "train/backend.h"

namespace engine::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kCopyBandwidth = 4.3e12;     // bytes a second, read and written by a copy on one H200
constexpr double kProductFlops = 790e12;      // dense bf16 products as measured on one H200
constexpr std::int64_t kPrefillTokens = 2048;  // of a step
constexpr std::int64_t kIdleSteps = 64;        // before a prompt comes to be read beside

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(p * static_cast<double>(values.size() - 1) + 0.5)];
}

// What is measured on: weights, and generators over them, one after another.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual const ModelSpec& spec() const = 0;
  virtual const DecoderWeights& weights() const = 0;
  virtual std::unique_ptr<Generator> generator(const GeneratorOptions& options, bool timed) = 0;
  virtual StepTimes times() const { return {}; }
};

class GpuSubject final : public Subject {
 public:
  explicit GpuSubject(const ServeBench& bench) : bench_(bench), base_(std::make_shared<RandomBase>(bench.shape)) { require_cuda_device(bench.device.index); }
  const ModelSpec& spec() const override { return base_->spec; }
  const DecoderWeights& weights() const override { return base_->weights; }
  std::unique_ptr<Generator> generator(const GeneratorOptions& options, bool timed) override {
    const RunnerOptions runner{.max_rows = options.max_running + options.prefill_tokens, .max_sequences = options.max_running,
                               .mixed_rows = options.tokens_beside < options.prefill_tokens ? options.tokens_beside : 0, .memory_budget = bench_.memory_budget,
                               .order = options.order, .graphs = bench_.graphs, .prepare = !timed, .timed = timed, .keep_decoded = bench_.keep_decoded, .crossover = bench_.crossover};
    auto made = cuda_backend().backend->create_runner({base_, base_->spec, base_->weights}, bench_.device.index, runner);
    if (!timed) std::fprintf(stderr, "%s", made->memory_table().c_str());
    runner_ = made.get();
    return std::make_unique<Generator>(std::move(made), options);
  }
  StepTimes times() const override { return runner_->times(); }

 private:
  const ServeBench& bench_;
  std::shared_ptr<RandomBase> base_;
  const Runner* runner_ = nullptr;
};

class HostSubject final : public Subject {
 public:
  explicit HostSubject(const ServeBench& bench)
      : model_(std::make_shared<Model>(ensure_nf4_model(bench.dir, bench.shape), LoadOptions{QuantizeOnLoad::none, Compute::bf16, bench.threads})) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  const DecoderWeights& weights() const override { return model_->weights(); }
  std::unique_ptr<Generator> generator(const GeneratorOptions& options, bool) override { return std::make_unique<Generator>(model_, options); }

 private:
  std::shared_ptr<Model> model_;
};

std::vector<std::uint32_t> random_tokens(const ModelSpec& spec, std::int64_t count, std::mt19937& random) {
  std::vector<std::uint32_t> tokens(static_cast<std::size_t>(count));
  for (std::uint32_t& token : tokens) token = random() % static_cast<std::uint32_t>(spec.vocab);
  return tokens;
}

// With magnitudes all are the first, whose norms take long on a host, but each has memory of its own.
std::vector<std::shared_ptr<const LoraAdapter>> random_adapters(const Subject& subject, const ServeBench& bench) {
  std::vector<std::shared_ptr<const LoraAdapter>> adapters;
  LoraConfig config{bench.rank, static_cast<double>(bench.rank), 0, false, known_target_modules(), ""};
  config.dora = bench.dora;
  if (bench.own_head) config.modules_to_save = {std::string(kHeadModule)};
  ThreadPool pool(bench.threads > 0 ? bench.threads : thread_count());
  Arena arena;
  for (std::int64_t n = 0; n < bench.adapters; ++n) {
    if (n > 0 && config.dora) {
      adapters.push_back(std::make_shared<LoraAdapter>(*adapters.front()));
      continue;
    }
    auto adapter = std::make_shared<LoraAdapter>(subject.spec(), config);
    const Philox random{3407, static_cast<std::uint64_t>(n)};
    for (std::int64_t i = 0; i < adapter->size(); ++i) adapter->data()[i] = 0.01f * (2.0f * random.uniform(static_cast<std::uint64_t>(i)) - 1.0f);
    if (config.dora || bench.own_head) adapter->start_from(make_exec(pool, Compute::bf16), subject.weights(), arena);
    adapters.push_back(std::move(adapter));
  }
  return adapters;
}

struct Decoding {
  double tokens_per_second = 0;
  std::vector<double> intervals;  // between tokens of one sequence, ms
  double steps = 0, wall_ms = 0;
  StepTimes times;                // of the whole run
};

// Runs a batch; looks at the time in which every sequence decodes.
Decoding decode(Subject& subject, Generator& generator, const ServeBench& bench, std::int64_t batch, bool gpu, const std::vector<std::shared_ptr<const LoraAdapter>>& adapters) {
  std::mt19937 random(3407);
  const std::int64_t context = bench.context;
  // Prompts are read one after another while others decode already: so many tokens more are made before all run.
  const std::int64_t before = batch * context / (gpu ? kPrefillTokens : GeneratorOptions{}.tokens_beside) + 8;
  std::mutex mutex;
  std::vector<std::vector<Clock::time_point>> times(static_cast<std::size_t>(batch));
  std::latch done(batch);
  std::optional<Error> failure;
  for (std::int64_t b = 0; b < batch; ++b) {
    GenerateRequest request;
    request.tokens = random_tokens(subject.spec(), context, random);
    request.sampling.max_tokens = bench.new_tokens + before;
    if (!adapters.empty()) request.adapter = adapters[static_cast<std::size_t>(b) % adapters.size()];
    generator.submit(std::move(request), {[&, b](const GeneratedToken&) { times[static_cast<std::size_t>(b)].push_back(Clock::now()); },
                                          [&](const Error* error) {
                                            if (error != nullptr) {
                                              const std::lock_guard lock(mutex);
                                              failure.emplace(*error);
                                            }
                                            done.count_down();
                                          }});
  }
  done.wait();
  if (failure) throw Error(failure->code(), failure->message());
  Clock::time_point from = times[0].front(), to = times[0].back();
  for (const auto& of : times) {
    from = std::max(from, of.front());
    to = std::min(to, of.back());
  }
  // The tokens of one step are told one after another, so that both ends lie within a step: a sequence's own time is from its first token between them to
  // its last, whole steps.
  Decoding result;
  std::int64_t tokens = 0;
  for (const auto& of : times)
    for (std::size_t i = 1; i < of.size(); ++i)
      if (of[i - 1] >= from && of[i] <= to) {
        ++tokens;
        result.intervals.push_back(milliseconds(of[i] - of[i - 1]));
        result.wall_ms += result.intervals.back() / static_cast<double>(batch);
      }
  result.steps = static_cast<double>(tokens) / static_cast<double>(batch);
  result.tokens_per_second = static_cast<double>(tokens) / result.wall_ms * 1e3;
  return result;
}

double read_prompt_ms(Subject& subject, Generator& generator, std::int64_t tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::latch done(1);
  const auto start = Clock::now();
  Clock::time_point first;
  GenerateRequest request;
  request.tokens = random_tokens(subject.spec(), tokens, random);
  request.sampling.max_tokens = 1;
  generator.submit(std::move(request), {[&](const GeneratedToken&) { first = Clock::now(); }, [&](const Error*) { done.count_down(); }});
  done.wait();
  return milliseconds(first - start);
}

// More than a sequence has decoded when the prompt beside it has been read.
std::int64_t most_tokens_beside(const ServeBench& bench, std::int64_t batch) {
  return kIdleSteps + (batch * bench.context + bench.beside) / std::max({bench.beside_step - batch, bench.beside_step / 4, std::int64_t{1}}) + batch + 64;
}

// Runs a batch, and when all of it decodes, reads a prompt of bench.beside tokens: how long the others wait for their tokens before, and meanwhile. Of a timed
// runner also where that time goes.
Json decode_beside_prompt(Subject& subject, Generator& generator, const ServeBench& bench, std::int64_t batch) {
  std::mt19937 random(3407);
  std::vector<std::vector<Clock::time_point>> times(static_cast<std::size_t>(batch));
  std::vector<StepTimes> spent;  // at each token of the first sequence
  std::vector<std::uint64_t> sequences;
  std::latch idle_over(batch), read(1), done(batch);
  for (std::int64_t b = 0; b < batch; ++b) {
    GenerateRequest request;
    request.tokens = random_tokens(subject.spec(), bench.context, random);
    request.sampling.max_tokens = most_tokens_beside(bench, batch);
    // The last to begin has the fewest tokens, so that all have decoded together for kIdleSteps when it has those.
    sequences.push_back(generator.submit(std::move(request), {[&, b](const GeneratedToken&) {
                                                                auto& of = times[static_cast<std::size_t>(b)];
                                                                of.push_back(Clock::now());
                                                                if (b == 0) spent.push_back(subject.times());
                                                                if (of.size() == kIdleSteps) idle_over.count_down();
                                                              },
                                                              [&](const Error*) { done.count_down(); }}));
  }
  idle_over.wait();
  const auto submitted = Clock::now();
  Clock::time_point first;
  GenerateRequest request;
  request.tokens = random_tokens(subject.spec(), bench.beside, random);
  request.sampling.max_tokens = 1;
  generator.submit(std::move(request), {[&](const GeneratedToken&) { first = Clock::now(); }, [&](const Error*) { read.count_down(); }});
  read.wait();
  for (const std::uint64_t sequence : sequences) generator.cancel(sequence);
  done.wait();
  Clock::time_point all_began = times[0].front();
  for (const auto& of : times) all_began = std::max(all_began, of.front());
  const auto between = [&](Clock::time_point from, Clock::time_point to) {
    std::vector<double> intervals;
    for (const auto& of : times)
      for (std::size_t i = 1; i < of.size(); ++i)
        if (of[i - 1] >= from && of[i] <= to) intervals.push_back(milliseconds(of[i] - of[i - 1]));
    return intervals;
  };
  const auto idle = between(all_began, submitted), beside = between(submitted, first);
  Json line = {{"bench", "beside"}, {"batch", batch}, {"context", bench.context}, {"prompt", bench.beside}, {"step_tokens", bench.beside_step}, {"prompt_ms", milliseconds(first - submitted)},
               {"tpot_ms", {{"idle_p50", percentile(idle, 0.5)}, {"idle_p99", percentile(idle, 0.99)}, {"p50", percentile(beside, 0.5)}, {"p99", percentile(beside, 0.99)}}}};
  const auto token_at = [&](Clock::time_point time) { return static_cast<std::size_t>(std::ranges::upper_bound(times[0], time) - times[0].begin()) - 1; };
  const std::size_t from = token_at(submitted), to = token_at(first);
  if (spent[to].products > spent[from].products) {
    const auto steps = static_cast<double>(to - from);
    const double products = spent[to].products - spent[from].products, attention = spent[to].attention - spent[from].attention, sampling = spent[to].sampling - spent[from].sampling;
    const double wall = milliseconds(times[0][to] - times[0][from]);
    line.update({{"step_ms", {{"products", products / steps}, {"attention", attention / steps}, {"sampling", sampling / steps}, {"host", (wall - products - attention - sampling) / steps}}}});
  }
  return line;
}

// Bytes that a step of decoding must read: every weight once, and the keys and values of all sequences.
double decode_bytes(const ModelSpec& spec, std::int64_t batch, double context) {
  constexpr double kNf4Bytes = 0.5 + 1.0 / 64 + 4.0 / (64 * 256);  // of a weight: its code, its scale's code, that one's scale
  double linear = 0;
  for (int p = 0; p < kProjections; ++p) linear += static_cast<double>(spec.rows(static_cast<Projection>(p)) * spec.columns(static_cast<Projection>(p)));
  const double weights = static_cast<double>(spec.layers) * linear * kNf4Bytes + 2.0 * static_cast<double>(spec.vocab * spec.hidden);
  return weights + static_cast<double>(batch) * context * 4.0 * static_cast<double>(spec.layers * spec.kv_size());
}

void print(const Json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

}  // namespace

void run_serve_bench(const ServeBench& bench) {
  require(!bench.batches.empty(), "--batch names no batch");
  const bool gpu = bench.device.automatic ? cuda_backend().backend != nullptr && !cuda_backend().backend->devices().empty() : bench.device.kind == DeviceKind::cuda;
  std::unique_ptr<Subject> subject;
  if (gpu) subject = std::make_unique<GpuSubject>(bench);
  else subject = std::make_unique<HostSubject>(bench);
  const ModelSpec& spec = subject->spec();
  const std::int64_t most = *std::ranges::max_element(bench.batches);
  GeneratorOptions options;
  options.max_running = most;
  options.order = bench.order;
  if (gpu) options.prefill_tokens = options.tokens_beside = kPrefillTokens;
  const auto host_cache = [&](std::int64_t tokens) { return (tokens / HostKvMemory::kBlockTokens + most + 1) * HostKvMemory::block_bytes(spec, Compute::bf16); };
  const std::int64_t decoded = bench.new_tokens + most * bench.context / options.tokens_beside + 64;  // of each sequence at most
  if (!gpu) options.kv_bytes = host_cache(std::max(most * (bench.context + decoded), bench.prefill));
  const auto adapters = random_adapters(*subject, bench);

  const auto loading = Clock::now();
  auto generator = subject->generator(options, false);
  const double load_seconds = milliseconds(Clock::now() - loading) / 1e3;
  Json common = {{"peer", "medmesh"}, {"model", bench.shape}, {"device", generator->device()}, {"order", bench.order == SumOrder::fastest ? "fastest" : "same_for_any_rows"}};
  if (bench.prefill > 0) {
    const double first = read_prompt_ms(*subject, *generator, bench.prefill, 0);
    double best = first;
    for (std::uint32_t run = 1; run < 4; ++run) best = std::min(best, read_prompt_ms(*subject, *generator, bench.prefill, run));
    Json line = common;
    const Work work = work_of(spec, bench.prefill);
    const double flops = static_cast<double>(bench.prefill) * work.blocks + work.head + work.attention;
    line.update({{"bench", "prefill"}, {"tokens", bench.prefill}, {"tok_s", static_cast<double>(bench.prefill) / best * 1e3}, {"ms", best}, {"first_ms", first}, {"load_s", load_seconds}});
    if (gpu) line["share_of_floor"] = flops / kProductFlops / (best / 1e3);
    print(line);
  }
  std::vector<Json> lines;
  for (const std::int64_t batch : bench.batches) {
    decode(*subject, *generator, bench, batch, gpu, {});  // captures, chooses algorithms
    const Decoding base = decode(*subject, *generator, bench, batch, gpu, {});
    Json line = common;
    line.update({{"bench", "decode"}, {"batch", batch}, {"context", bench.context}, {"tok_s", base.tokens_per_second}, {"steps", base.steps},
                 {"tpot_ms", {{"mean", base.wall_ms / base.steps}, {"p50", percentile(base.intervals, 0.5)}, {"p90", percentile(base.intervals, 0.9)}, {"p99", percentile(base.intervals, 0.99)}}}});
    if (gpu) {
      const double floor_ms = decode_bytes(spec, batch, static_cast<double>(bench.context) + base.steps) / kCopyBandwidth * 1e3;
      line["floor_ms"] = floor_ms;
      line["share_of_floor"] = floor_ms / (base.wall_ms / base.steps);
    }
    if (!adapters.empty()) {
      decode(*subject, *generator, bench, batch, gpu, adapters);
      const Decoding adapted = decode(*subject, *generator, bench, batch, gpu, adapters);
      line["adapters"] = std::min(bench.adapters, batch);
      line["rank"] = bench.rank;
      line["dora"] = bench.dora;
      line["own_head"] = bench.own_head;
      line["tok_s_adapted"] = adapted.tokens_per_second;
      line["adapter_cost"] = 1 - adapted.tokens_per_second / base.tokens_per_second;
    }
    print(line);
    lines.push_back(std::move(line));
  }
  if (bench.beside > 0) {
    GeneratorOptions beside = options;
    beside.max_running = most + 1;
    beside.tokens_beside = bench.beside_step;
    if (!gpu) beside.kv_bytes = host_cache(most * (bench.context + most_tokens_beside(bench, most)) + bench.beside);
    for (const bool timed : {false, true}) {
      if (timed && !(gpu && bench.phases)) continue;
      generator.reset();
      generator = subject->generator(beside, timed);
      for (const std::int64_t batch : bench.batches) {
        decode_beside_prompt(*subject, *generator, bench, batch);  // captures, chooses algorithms
        Json line = common;
        line.update(decode_beside_prompt(*subject, *generator, bench, batch));
        print(line);
      }
    }
  }
  if (!gpu || !bench.phases) return;
  // Where the time goes: the same without captured steps, with a clock between the parts.
  generator.reset();
  generator = subject->generator(options, true);
  for (const std::int64_t batch : bench.batches) {
    decode(*subject, *generator, bench, batch, gpu, {});
    const StepTimes before = subject->times();
    const std::int64_t steps_before = generator->load().steps;
    const auto start = Clock::now();
    decode(*subject, *generator, bench, batch, gpu, {});
    const double wall = milliseconds(Clock::now() - start), steps = static_cast<double>(generator->load().steps - steps_before);
    const StepTimes now = subject->times();
    const double products = now.products - before.products, attention = now.attention - before.attention, sampling = now.sampling - before.sampling;
    Json line = common;
    line.update({{"bench", "phases"}, {"batch", batch}, {"context", bench.context}, {"steps", steps},
                 {"step_ms", {{"products", products / steps}, {"attention", attention / steps}, {"sampling", sampling / steps}, {"host", (wall - products - attention - sampling) / steps}}}});
    print(line);
  }
}

}  // namespace engine::bench
