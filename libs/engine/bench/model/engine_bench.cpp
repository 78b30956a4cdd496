// engine-bench: what a user waits for, on a model of a real shape with random weights. One JSON object a line; `--help` has the measurements.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "formats/quantize_model.h"
#include "infer/generator.h"
#include "infer/host_kv_memory.h"
#include "model/bench_model.h"
#include "model/model.h"
#include "model/serve_bench.h"
#include "model/train_bench.h"
#include "support/bench.h"
#include "train/trainer.h"

using namespace engine;

namespace {

constexpr const char* kUsage = R"(engine-bench: what a user waits for, on a model of a real shape with random weights. One JSON object a line.

  engine-bench [all|quantize|step|prefill|decode] [options]      on this machine's CPU
    quantize  bf16 folder to NF4 folder                          step     a QLoRA step (rank 16, all linears, 8-bit AdamW, checkpointing)
    prefill   prompt to first token, through the generator       decode   time between tokens of one sequence, after that prompt
    --shape tiny|0.5b|1.5b|3b|7b (1.5b)    --tokens N (512)      --new-tokens N (64)    --repeat N (3)
    --compute bf16|f32 (bf16)      --threads N           --dir DIR
    The weights are written under --dir once (1.5b: 3.1 + 1.2 GB; default: medmesh-bench-SHAPE in the temporary folder) and kept for the
    next run. all runs each in a process of its own, so that each peak is its own.

  engine-bench train [options]                                   QLoRA training on GPUs, whose library lies beside this program or is named
    --shape tiny|…|7b (7b)         --steps N (12)                by MEDMESH_ENGINE_CUDA_LIBRARY
    --work tutorial|fixed|batch|long (tutorial)     1 row of 256 to 1024 tokens, two to a step; the same with 640; 8 rows of 1024; 1 of 16384
    --memory-budget 7GiB|auto      --data-parallel N (1)

  engine-bench serve [options]                                   generation at several batch sizes; on a GPU over weights that never touch a file
    --shape tiny|…|7b (7b)         --device auto|cpu|cuda[:N] (auto)            --memory-budget 24GiB|auto
    --batch N,… (1,8,32,64)        --context N (512)     --new-tokens N (64)    --prefill N|0 (2048)
    --adapters N (0)               --rank N (16)         --dora on|off          --own-head on|off
    --order fastest|same           the same bits whatever runs beside a sequence
    --graphs on|off                --phases on|off       --copies on|off        --crossover N    rows from which decoded copies are used
    --beside N (0)                 a prompt of N tokens read while each batch decodes, in steps of --beside-step N (256) tokens in all
)";

struct Options {
  std::string measure = "all", shape = "1.5b";
  std::filesystem::path dir;
  std::int64_t tokens = 512, new_tokens = 64, repeat = 3;
  int threads = bench::thread_count();
  Compute compute = Compute::bf16;
  bench::TrainBench train;
  bench::ServeBench serve;
};

std::int64_t parse_count(const std::string& flag, const std::string& word) {
  std::size_t used = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(word, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  require(used == word.size() && value >= 1 && value <= 1'000'000, flag, " is '", word, "'; use a whole number from 1 to 1000000");
  return value;
}

bool parse_switch(const std::string& flag, const std::string& word) {
  require(word == "on" || word == "off", flag, " is '", word, "'; use on or off");
  return word == "on";
}

std::vector<std::int64_t> parse_counts(const std::string& flag, const std::string& words) {
  std::vector<std::int64_t> counts;
  for (std::size_t first = 0; first <= words.size();) {
    const std::size_t comma = std::min(words.find(',', first), words.size());
    counts.push_back(parse_count(flag, words.substr(first, comma - first)));
    first = comma + 1;
  }
  return counts;
}

// What only `serve` takes. False for another flag.
bool parse_serve(bench::ServeBench& serve, const std::string& flag, const std::string& value) {
  if (flag == "--device") serve.device = parse_device(value);
  else if (flag == "--batch") serve.batches = parse_counts(flag, value);
  else if (flag == "--context") serve.context = parse_count(flag, value);
  else if (flag == "--prefill") serve.prefill = value == "0" ? 0 : parse_count(flag, value);
  else if (flag == "--beside") serve.beside = value == "0" ? 0 : parse_count(flag, value);
  else if (flag == "--beside-step") serve.beside_step = parse_count(flag, value);
  else if (flag == "--adapters") serve.adapters = value == "0" ? 0 : parse_count(flag, value);
  else if (flag == "--rank") serve.rank = parse_count(flag, value);
  else if (flag == "--dora") serve.dora = parse_switch(flag, value);
  else if (flag == "--own-head") serve.own_head = parse_switch(flag, value);
  else if (flag == "--crossover") serve.crossover = parse_count(flag, value);
  else if (flag == "--graphs") serve.graphs = parse_switch(flag, value);
  else if (flag == "--phases") serve.phases = parse_switch(flag, value);
  else if (flag == "--copies") serve.keep_decoded = parse_switch(flag, value);
  else if (flag == "--order") {
    require(value == "fastest" || value == "same", flag, " is '", value, "'; use fastest or same");
    serve.order = value == "same" ? SumOrder::same_for_any_rows : SumOrder::fastest;
  } else return false;
  return true;
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!word.starts_with("--")) {
      require(word == "all" || word == "quantize" || word == "step" || word == "prefill" || word == "decode" || word == "train" || word == "serve",
              "no measurement '", word, "'; use all, quantize, step, prefill, decode, train or serve");
      options.measure = word;
      continue;
    }
    require(i + 1 < words.size(), word, " needs a value");
    const std::string& value = words[++i];
    if (word == "--shape") options.shape = options.train.shape = options.serve.shape = value;
    else if (word == "--work") options.train.work = value;
    else if (word == "--memory-budget") options.train.memory_budget = options.serve.memory_budget = bench::parse_memory(value);
    else if (word == "--data-parallel") options.train.data_parallel = static_cast<int>(parse_count(word, value));
    else if (word == "--steps") options.train.steps = parse_count(word, value);
    else if (word == "--dir") options.dir = value;
    else if (word == "--tokens") options.tokens = parse_count(word, value);
    else if (word == "--new-tokens") options.new_tokens = options.serve.new_tokens = parse_count(word, value);
    else if (word == "--repeat") options.repeat = parse_count(word, value);
    else if (word == "--threads") options.threads = options.serve.threads = static_cast<int>(parse_count(word, value));
    else if (word == "--compute") {
      require(value == "bf16" || value == "f32", "--compute is '", value, "'; use bf16 or f32");
      options.compute = value == "bf16" ? Compute::bf16 : Compute::f32;
    } else if (!parse_serve(options.serve, word, value)) fail(Code::invalid, "no option '", word, "'");
  }
  bench::shape_config(options.shape);
  if (options.measure == "serve") bench::shape_config(options.serve.shape);
  if (options.dir.empty()) options.dir = std::filesystem::temp_directory_path() / ("medmesh-bench-" + options.shape);
  options.serve.dir = options.dir;
  return options;
}

// A line of /proc/self/status, in bytes: VmHWM is the most memory ever resident, file pages included; RssAnon what is the process's own now.
std::int64_t status_bytes(const char* name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name)) return std::atoll(line.c_str() + std::string(name).size() + 1) * 1024;
  return 0;
}

struct Timing {
  double seconds = 1e30;  // best run, by the wall clock
  double cpu_seconds = 0;  // of all threads, of that run
};

double process_cpu() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class Body>
Timing timed(Body&& body) {
  const double cpu = process_cpu();
  const auto start = std::chrono::steady_clock::now();
  body();
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), process_cpu() - cpu};
}

template <class Body>
Timing best_of(std::int64_t runs, Body&& body) {
  Timing best;
  for (std::int64_t run = 0; run < runs; ++run)
    if (const Timing t = timed(body); t.seconds < best.seconds) best = t;
  return best;
}

// Memory first: measuring the machine's floors takes a gigabyte of its own.
Json line_of(const Options& options, const Timing& timing) {
  Json line = {{"bench", options.measure}, {"shape", options.shape}, {"seconds", timing.seconds}, {"cpu_seconds", timing.cpu_seconds}};
  line["peak_rss_bytes"] = status_bytes("VmHWM:");
  return line;
}

void print(Json line, const Exec& ex) {
  const bench::Floors& floors = bench::floors(ex.pool);
  line["machine"] = {{"cpu", cpu_name()},
                     {"isa", isa_name(ex.isa)},
                     {"threads", ex.pool.threads()},
                     {"compute", ex.compute == Compute::bf16 ? "bf16" : "f32"},
                     {"fp32_flops_per_second", floors.flops},
                     {"memory_bytes_per_second", floors.bandwidth}};
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

std::shared_ptr<Model> load_nf4(const Options& options) {
  return std::make_shared<Model>(bench::ensure_nf4_model(options.dir, options.shape), LoadOptions{QuantizeOnLoad::none, options.compute, options.threads});
}

std::vector<std::uint32_t> prompt_of(const ModelSpec& spec, std::int64_t tokens, std::int64_t seed) {
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::uint32_t>((seed * 7919 + static_cast<std::int64_t>(i) * 104729) % spec.vocab);
  return ids;
}

void measure_quantize(const Options& options) {
  const std::filesystem::path from = bench::ensure_bf16_model(options.dir, options.shape), to = options.dir / ("quantize-" + std::to_string(::getpid()));
  const std::int64_t before = status_bytes("VmHWM:");
  ThreadPool pool(options.threads);
  const Exec ex = make_exec(pool, options.compute);
  const Timing timing = timed([&] { quantize_model(ex, from, to, {}); });
  std::filesystem::remove_all(to);
  Json line = line_of(options, timing);
  const HfFolder folder(from);
  std::int64_t largest = 0;
  for (const TensorView* tensor : folder.tensors()) largest = std::max(largest, tensor->bytes);
  line["largest_tensor_bytes"] = largest;
  line["rss_before_bytes"] = before;
  line["weight_bytes"] = folder.weight_bytes();
  line["bytes_per_second"] = static_cast<double>(folder.weight_bytes()) / timing.seconds;
  print(std::move(line), ex);
}

void measure_step(const Options& options) {
  const auto model = load_nf4(options);
  TrainerOptions training;
  training.lora = LoraConfig{16, 16, 0, false, known_target_modules(), ""};
  training.optimizer.kind = OptimizerKind::adamw_8bit;
  training.schedule = {ScheduleKind::constant, 0, 1 << 20, 1e-4};
  Trainer trainer(model, training);
  const std::vector<std::uint32_t> ids = prompt_of(model->spec(), options.tokens, 1), offsets{0, static_cast<std::uint32_t>(options.tokens)};
  const std::vector<std::uint8_t> mask(ids.size(), 1);
  const std::vector<MicroBatch> micros{{ids, mask, offsets}};
  StepResult result;
  const Timing timing = best_of(options.repeat + 1, [&] { result = trainer.train_step(micros); });
  Json line = line_of(options, timing);
  const bench::Work work = bench::work_of(model->spec(), options.tokens);
  const auto tokens = static_cast<double>(options.tokens);
  line["tokens"] = options.tokens;
  line["tokens_per_second"] = tokens / timing.seconds;
  line["held_bytes"] = result.peak_bytes;
  // Forward and input gradient of every product; what checkpointing computes again is not counted as work.
  line["useful_flops"] = 2 * tokens * (work.blocks + work.head) + 3.5 * work.attention;
  line["recomputed_flops_at_most"] = tokens * work.blocks + work.attention;
  line["share_of_fp32_peak"] = line["useful_flops"].get<double>() / timing.seconds / bench::floors(model->exec().pool).flops;
  print(std::move(line), model->exec());
}

// Runs one sequence; returns the time to its first token and from there to its last.
std::pair<Timing, Timing> generate(Generator& generator, std::vector<std::uint32_t> prompt, std::int64_t new_tokens) {
  Sampling sampling;
  sampling.max_tokens = new_tokens;
  using Clock = std::chrono::steady_clock;
  Clock::time_point first, last;
  double first_cpu = 0, last_cpu = 0;
  std::latch done(1);
  const double start_cpu = process_cpu();
  const auto start = Clock::now();
  bool any = false;
  generator.submit({std::move(prompt), nullptr, sampling}, {[&](const GeneratedToken&) {
                                                              last = Clock::now();
                                                              last_cpu = process_cpu();
                                                              if (!any) first = last, first_cpu = last_cpu;
                                                              any = true;
                                                            },
                                                            [&](const Error*) { done.count_down(); }});
  done.wait();
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  return {{seconds(first - start), first_cpu - start_cpu}, {seconds(last - first), last_cpu - first_cpu}};
}

void measure_prefill(const Options& options) {
  const auto model = load_nf4(options);
  Generator generator(model, {.prefill_tokens = options.tokens});
  Timing best;
  for (std::int64_t run = 0; run <= options.repeat; ++run)
    if (const Timing t = generate(generator, prompt_of(model->spec(), options.tokens, run), 1).first; t.seconds < best.seconds) best = t;
  Json line = line_of(options, best);
  const bench::Work work = bench::work_of(model->spec(), options.tokens);
  line["tokens"] = options.tokens;
  line["tokens_per_second"] = static_cast<double>(options.tokens) / best.seconds;
  line["useful_flops"] = static_cast<double>(options.tokens) * work.blocks + work.head + work.attention;
  line["share_of_fp32_peak"] = line["useful_flops"].get<double>() / best.seconds / bench::floors(model->exec().pool).flops;
  print(std::move(line), model->exec());
}

void measure_decode(const Options& options) {
  require(options.new_tokens >= 2, "--new-tokens is ", options.new_tokens, "; a time between tokens needs 2 or more");
  const auto model = load_nf4(options);
  Generator generator(model, {.prefill_tokens = 256});
  Timing best;
  for (std::int64_t run = 0; run <= options.repeat; ++run)
    if (const Timing t = generate(generator, prompt_of(model->spec(), options.tokens, run), options.new_tokens).second; t.seconds < best.seconds) best = t;
  const auto intervals = static_cast<double>(options.new_tokens - 1);
  best.seconds /= intervals;
  best.cpu_seconds /= intervals;
  Json line = line_of(options, best);
  const ModelSpec& spec = model->spec();
  // Every weight once, but of an untied embedding table one row; keys and values of the context, halfway through.
  const std::int64_t table = spec.vocab * spec.hidden * dtype_size(model->info().stored_dtype);
  const std::int64_t weights = model->info().weight_bytes - (spec.tied ? 0 : table);
  const std::int64_t cached = HostKvMemory::block_bytes(spec, options.compute) / HostKvMemory::kBlockTokens * (options.tokens + options.new_tokens / 2);
  const double bytes = static_cast<double>(weights + cached);
  line["context_tokens"] = options.tokens;
  line["tokens_per_second"] = 1 / best.seconds;
  line["bytes_read"] = weights + cached;
  line["bytes_per_second"] = bytes / best.seconds;
  line["share_of_memory_bandwidth"] = bytes / best.seconds / bench::floors(model->exec().pool).bandwidth;
  print(std::move(line), model->exec());
}

// Runs this program again for one measurement.
int run_alone(const std::vector<std::string>& words, const std::string& measure) {
  std::vector<std::string> own{"engine-bench", measure};
  for (const std::string& word : words)
    if (word != "all") own.push_back(word);
  std::vector<char*> arguments;
  for (std::string& word : own) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  require(Code::io, child >= 0, "cannot start a process");
  if (child == 0) {
    ::execv("/proc/self/exe", arguments.data());
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  if (std::ranges::any_of(words, [](const std::string& word) { return word == "--help" || word == "-h"; })) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    const Options options = parse(words);
    if (options.measure == "train") bench::run_train_bench(options.train);
    else if (options.measure == "serve") bench::run_serve_bench(options.serve);
    else if (options.measure == "quantize") measure_quantize(options);
    else if (options.measure == "step") measure_step(options);
    else if (options.measure == "prefill") measure_prefill(options);
    else if (options.measure == "decode") measure_decode(options);
    else {
      bench::ensure_nf4_model(options.dir, options.shape);
      for (const char* measure : {"quantize", "step", "prefill", "decode"})
        if (const int status = run_alone(words, measure); status != 0) return status;
    }
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "engine-bench: %s\n", error.message().c_str());
    return error.code() == Code::invalid ? 2 : 1;
  }
}
