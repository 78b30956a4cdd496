#include "model/train_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "core/error.h"
#include "core/json.h"
#include "model/bench_model.h"
#include "model/random_base.h"
#include "train/backend.h"

namespace engine::bench {
namespace {

constexpr double kGib = 1 << 30;
constexpr double kPeakFlops = 790e12;  // dense bf16 products as measured on one H200
constexpr std::uint32_t kTokenLimit = 150000;

// CPython's random.Random(seed).randint for seeds below 2^32: MT19937 seeded by array, and rejection on the top bits.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint32_t seed) {
    state_[0] = 19650218;
    for (std::uint32_t i = 1; i < kWords; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
    std::uint32_t i = 1;
    const auto wrap = [&] {
      if (++i >= kWords) {
        state_[0] = state_[kWords - 1];
        i = 1;
      }
    };
    for (std::uint32_t k = 0; k < kWords; ++k, wrap()) state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1664525u)) + seed;
    for (std::uint32_t k = 1; k < kWords; ++k, wrap()) state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1566083941u)) - i;
    state_[0] = 0x80000000u;
  }
  std::int64_t between(std::int64_t least, std::int64_t most) {
    const auto count = static_cast<std::uint32_t>(most - least + 1);
    const int bits = 32 - __builtin_clz(count);
    std::uint32_t drawn = 0;
    do drawn = word() >> (32 - bits);
    while (drawn >= count);
    return least + drawn;
  }

 private:
  static constexpr std::uint32_t kWords = 624, kShift = 397;
  std::uint32_t word() {
    if (next_ == kWords) {
      for (std::uint32_t k = 0; k < kWords; ++k) {
        const std::uint32_t y = (state_[k] & 0x80000000u) | (state_[(k + 1) % kWords] & 0x7fffffffu);
        state_[k] = state_[(k + kShift) % kWords] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfu : 0u);
      }
      next_ = 0;
    }
    std::uint32_t y = state_[next_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }
  std::uint32_t state_[kWords], next_ = kWords;
};

struct OwnedMicro {
  std::vector<std::uint32_t> ids, offsets{0};
  std::vector<std::uint8_t> mask;
  OwnedMicro(const Rows& rows, std::mt19937& random, std::int64_t vocab) {
    for (const std::int64_t length : rows) offsets.push_back(offsets.back() + static_cast<std::uint32_t>(length));
    const std::uint32_t limit = std::min(kTokenLimit, static_cast<std::uint32_t>(vocab));
    for (std::uint32_t i = 0; i < offsets.back(); ++i) ids.push_back(random() % limit);
    mask.assign(ids.size(), 1);
  }
  MicroBatch view() const { return {ids, mask, offsets}; }
};

// Multiplications and additions that a step cannot do without: forward, gradients of activations, the head, attention (2.5 times again backwards).
double useful_flops(const ModelSpec& spec, const std::vector<Rows>& micros) {
  double flops = 0;
  for (const Rows& rows : micros)
    for (const std::int64_t length : rows) {
      const Work work = work_of(spec, length);
      flops += 2 * static_cast<double>(length) * (work.blocks + work.head) + 3.5 * work.attention;
    }
  return flops;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.at(values.size() / 2);
}

}  // namespace

std::vector<std::vector<Rows>> lengths_of(const std::string& work, std::int64_t steps) {
  require(work == "tutorial" || work == "fixed" || work == "batch" || work == "long", "--work is '", work, "'; use tutorial, fixed, batch or long");
  PythonRandom random(3407);
  std::vector<std::vector<Rows>> lengths;
  for (std::int64_t step = 0; step < steps; ++step) {
    if (work == "tutorial") {
      const std::int64_t first = random.between(256, 1024), second = random.between(256, 1024);
      lengths.push_back({{first}, {second}});
    } else if (work == "fixed") {
      lengths.push_back({{640}, {640}});
    } else {
      lengths.push_back({work == "batch" ? Rows(8, 1024) : Rows{16384}});
    }
  }
  return lengths;
}

std::int64_t parse_memory(const std::string& word) {
  if (word == "auto") return 0;
  std::size_t used = 0;
  double value = 0;
  try {
    value = std::stod(word, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = word.substr(used);
  require(used > 0 && value > 0 && value < 1e6 && (unit == "GiB" || unit == "MiB"), "--memory-budget is '", word, "'; use auto, or a size such as 7GiB or 512MiB");
  return static_cast<std::int64_t>(value * (unit == "GiB" ? kGib : kGib / 1024));
}

void run_train_bench(const TrainBench& bench) {
  std::vector<std::vector<Rows>> lengths = lengths_of(bench.work, bench.warm + bench.steps);
  for (std::vector<Rows>& micros : lengths) {
    const std::vector<Rows> one = micros;
    for (int device = 1; device < bench.data_parallel; ++device) micros.insert(micros.end(), one.begin(), one.end());
  }
  require_cuda_device(bench.data_parallel - 1);
  const Backend& backend = *cuda_backend().backend;
  std::vector<int> devices(static_cast<std::size_t>(bench.data_parallel));
  std::iota(devices.begin(), devices.end(), 0);

  const auto loading = std::chrono::steady_clock::now();
  const auto base = std::make_shared<RandomBase>(bench.shape);
  const std::int64_t context_bytes = backend.used_bytes(0);  // the driver's own, before anything of ours
  TrainerOptions options;
  options.lora = LoraConfig{16, 16, 0, false, known_target_modules(), ""};
  options.optimizer = {.kind = OptimizerKind::adamw_8bit, .weight_decay = 0.01};
  options.schedule = {ScheduleKind::constant, 0, bench.warm + bench.steps, 2e-4};
  options.seed = 3407;
  if (bench.memory_budget > 0) {
    require(Code::oom, bench.memory_budget > context_bytes, "the budget of ", bench.memory_budget, " bytes is less than the ", context_bytes, " the driver itself takes");
    options.memory_budget = bench.memory_budget - context_bytes;
  }
  for (const auto& micros : lengths)
    for (const Rows& rows : micros) options.micro_batch_tokens = std::max(options.micro_batch_tokens, std::accumulate(rows.begin(), rows.end(), std::int64_t{0}));
  const auto trainer = backend.create_trainer({base, base->spec, base->weights}, devices, options);
  const double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - loading).count();
  const TrainingPlan plan = trainer->plan().value_or(TrainingPlan{});
  std::fprintf(stderr, "%s", plan.table.c_str());

  std::mt19937 random(3407);
  std::vector<double> times, losses;
  std::vector<PhaseTimes> phases;
  double tokens = 0, flops = 0;
  for (std::size_t step = 0; step < lengths.size(); ++step) {
    std::vector<OwnedMicro> micros;
    std::vector<MicroBatch> views;
    for (const Rows& rows : lengths[step]) micros.emplace_back(rows, random, base->spec.vocab);
    for (const OwnedMicro& micro : micros) views.push_back(micro.view());
    const auto start = std::chrono::steady_clock::now();
    const StepResult result = trainer->train_step(views);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (static_cast<std::int64_t>(step) < bench.warm) continue;
    times.push_back(seconds);
    losses.push_back(std::round(result.loss * 1000) / 1000);
    phases.push_back(result.phases);
    tokens += static_cast<double>(result.tokens);
    flops += useful_flops(base->spec, lengths[step]);
  }
  const double all = std::accumulate(times.begin(), times.end(), 0.0);
  const auto phase = [&](double PhaseTimes::* which) {
    std::vector<double> of;
    for (const PhaseTimes& step : phases) of.push_back(step.*which);
    return median(of);
  };
  const std::int64_t used = backend.used_bytes(0);
  const Json line = {{"peer", "medmesh"},
                     {"model", bench.shape},
                     {"work", bench.work},
                     {"data_parallel", bench.data_parallel},
                     {"device", backend.devices().front().name},
                     {"tok_s", std::llround(tokens / all)},
                     {"median_ms", median(times) * 1e3},
                     {"phase_ms",
                      {{"forward", phase(&PhaseTimes::forward)}, {"loss", phase(&PhaseTimes::loss)}, {"backward", phase(&PhaseTimes::backward)}, {"update", phase(&PhaseTimes::update)}}},
                     {"share_of_floor", flops / all / (kPeakFlops * bench.data_parallel)},
                     {"planned_gib", static_cast<double>(plan.device_bytes) / kGib},
                     {"process_gib", static_cast<double>(used) / kGib},
                     {"context_gib", static_cast<double>(context_bytes) / kGib},
                     {"plan",
                      {{"kept", plan.kept_layers}, {"partly", plan.partly_kept_layers}, {"recomputed", plan.recomputed_layers}, {"offloaded", plan.offloaded_layers},
                       {"decoded", plan.decoded_layers}, {"embedding_on_device", plan.embedding_on_device}}},
                     {"trainable", trainer->trainable_parameter_count()},
                     {"opt", "AdamW8bit"},
                     {"load_s", load_seconds},
                     {"losses", Json{losses.at(0), losses.at(std::min<std::size_t>(1, losses.size() - 1)), losses.back()}}};
  std::printf("%s\n", line.dump().c_str());
}

}  // namespace engine::bench
