// sample.cu: a row of logits is read by many blocks, chunk by chunk, twice: for its largest value and its Σ exp, then for its masses exp((z - largest) / T),
//   of which those that can matter are kept in lists: from 2^-20 on, or, where top-k is at most the number of chunks, from the k-th of the chunks' largest
//   on. One block a row then finds the thresholds (sample_select.cuh) and draws: the chunk first, by the chunks' sums. Where the lists do not tell, which
//   flat distributions make so, it writes all of the row's masses where the lists were and reads them instead.
//   Floor: 8 B a logit from the second-level cache (4 when greedy), and three launches. Sums are fp64, in an order that depends on the row alone.
#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/sample.h"
#include "cuda/ops/sample_select.cuh"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

using sampling::kSelect;

constexpr int kThreads = 256, kEach = 8, kChunk = kThreads * kEach;
constexpr int kListed = kChunk / 2;     // candidates of one chunk: a list takes what its masses do
constexpr float kCandidate = 0x1p-20f;  // the largest mass of a row is 1
constexpr int kMostChunks = static_cast<int>(sampling::kMostMasses / kChunk);
static_assert(kMostChunks <= kSelect);  // a chunk for a thread

// What is known of a chunk.
struct Chunk {
  double total;   // Σ exp(z - top)
  double mass;    // Σ masses
  float top;
  std::int32_t at;  // of the first that is `top`
  std::int32_t candidates;
  std::int32_t reserved;
};
struct Candidate {
  std::uint32_t token;
  float mass;
};

struct Work {
  Chunk* chunks;          // [rows][count]
  Candidate* candidates;  // [rows][count][kListed]
  std::int64_t count;

  ENGINE_DEVICE Chunk& chunk(std::int64_t row, std::int64_t c) const { return chunks[row * count + c]; }
  ENGINE_DEVICE Candidate* list(std::int64_t row, std::int64_t c) const { return candidates + (row * count + c) * kListed; }
  ENGINE_DEVICE float* masses(std::int64_t row) const { return reinterpret_cast<float*>(list(row, 0)); }  // [count · kChunk]
};

ENGINE_DEVICE float value_of(float z) { return z; }
ENGINE_DEVICE float value_of(bf16 z) { return widen(z); }

struct Best {
  float value;
  std::int32_t at;
};
ENGINE_DEVICE Best shuffle_xor(Best best, unsigned mask) { return {cuda::shuffle_xor(best.value, mask), cuda::shuffle_xor(best.at, mask)}; }
// The larger, the first of equals.
ENGINE_DEVICE Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }

template <class T>
__global__ void __launch_bounds__(kThreads) survey(View<const T> logits, const std::int32_t* positions, Work work) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.y, first = std::int64_t{blockIdx.x} * kChunk;
  if (positions[row] < 0) return;
  const T* z = logits.row(row);
  float values[kEach];
  Best best{-infinity(), static_cast<std::int32_t>(first)};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const std::int64_t at = first + i * kThreads + threadIdx.x;
    values[i] = at < logits.cols ? value_of(z[at]) : -infinity();
    best = better(best, {values[i], static_cast<std::int32_t>(at)});
  }
  best = sampling::reduce(best, [](Best a, Best b) { return better(a, b); });
  double total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (values[i] != -infinity()) total += static_cast<double>(expf(values[i] - best.value));
  total = sampling::reduce_sum(total);
  if (threadIdx.x == 0) work.chunk(row, blockIdx.x) = {total, 0, best.value, best.at, 0, 0};
}

// The masses of a row.   exp((z - top) / T) as the CPU has it: with the quotient rounded as a division rounds it.
struct MassOf {
  double top, temperature, inverse;

  ENGINE_DEVICE MassOf(float t, double temp) : top(static_cast<double>(t)), temperature(temp), inverse(1.0 / temp) {}
  ENGINE_DEVICE float operator()(float z) const {
    const double d = static_cast<double>(z) - top, q = d * inverse;
    if (d == 0) return 1.0f;  // whatever the temperature
    if (!(q > -110.0)) return 0.0f;  // below the least float; NaN, too
    const float mass = static_cast<float>(exp(fma(fma(-q, temperature, d), inverse, q)));
    return mass > 0 ? mass : 0.0f;
  }
};

// Settings that say no more than others are brought to one form.
ENGINE_DEVICE SampleSettings settings_of(SampleSettings set, std::int64_t vocab) {
  if (set.top_k >= vocab) set.top_k = 0;
  return set;
}
ENGINE_DEVICE bool takes_all(const SampleSettings& set) { return set.top_k == 0 && !(set.top_p < 1) && !(set.min_p > 0); }

template <class T>
__global__ void __launch_bounds__(kThreads) weigh(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, Work work) {
  allow_next();
  wait_for_previous();
  SHARED_ARRAY(float, tops, kThreads);
  SHARED_ARRAY(float, least_top, 1);
  const std::int64_t row = blockIdx.y, first = std::int64_t{blockIdx.x} * kChunk + kEach * threadIdx.x;
  if (positions[row] < 0 || settings[row].temperature == 0) return;
  const SampleSettings set = settings_of(settings[row], logits.cols);
  const T* z = logits.row(row);
  float values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) values[i] = first + i < logits.cols ? value_of(z[first + i]) : -infinity();
  float top = -infinity();
  for (std::int64_t c = threadIdx.x; c < work.count; c += kThreads) top = fmaxf(top, work.chunk(row, c).top);
  const MassOf mass_of(sampling::reduce(top, [](float a, float b) { return fmaxf(a, b); }), set.temperature);
  float least = takes_all(set) ? infinity() : kCandidate;
  if (set.top_k > 0 && set.top_k <= work.count && work.count <= kThreads) {
    const auto chunk = static_cast<int>(threadIdx.x), count = static_cast<int>(work.count);
    tops[chunk] = top;
    __syncthreads();
    if (chunk < count) {
      int before = 0;
      for (int c = 0; c < count; ++c) before += tops[c] > top || (tops[c] == top && c < chunk) ? 1 : 0;
      if (before == set.top_k - 1) *least_top = top;
    }
    __syncthreads();
    least = fmaxf(mass_of(*least_top), float_of(1));
  }
  float masses[kEach];
  double sum = 0;
  int listed = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    masses[i] = mass_of(values[i]);
    sum += static_cast<double>(masses[i]);
    listed += masses[i] >= least ? 1 : 0;
  }
  const int to = sampling::running_sum(listed);
  int at = to - listed;
  Candidate* list = work.list(row, blockIdx.x);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (masses[i] >= least) {
      if (at < kListed) list[at] = {static_cast<std::uint32_t>(first + i), masses[i]};
      ++at;
    }
  sum = sampling::reduce_sum(sum);
  if (threadIdx.x == kThreads - 1) {
    work.chunk(row, blockIdx.x).mass = sum;
    work.chunk(row, blockIdx.x).candidates = to;
  }
}

// What top-k, top-p and min-p leave of `masses`: those from `least` on. `masses` are all there are, or (not `whole`) what lists have of them; where those do
// not tell, false.
template <class Masses>
ENGINE_DEVICE bool threshold(const Masses& masses, const SampleSettings& set, double all_mass, bool whole, sampling::Bins& bins, float& least) {
  least = float_of(1);  // more than what is masked
  double kept = all_mass;
  if (set.top_k > 0) {
    const sampling::Found found = sampling::find_least(masses, [&](const sampling::Tally& tally) { return tally.count >= set.top_k; }, bins);
    if (!found.any && !whole) return false;
    if (found.any) {
      least = found.least;
      kept = found.mass;
    }
  }
  if (set.top_p < 1) {
    const double wanted = set.top_p * kept;
    const sampling::Found found = sampling::find_least(masses, [&](const sampling::Tally& tally) { return tally.mass >= wanted; }, bins);
    if (!found.any && !whole) return false;
    if (found.any) least = fmaxf(least, found.least);
  }
  least = fmaxf(least, static_cast<float>(set.min_p));
  return whole || set.top_k > 0 || least >= kCandidate;
}

// Which chunk to draw from, and what its running sum has to pass. Thread c has chunk c's sum of what is kept. sums: room for kSelect of them.
struct Target {
  int chunk;  // negative: nothing is kept
  double rest;
};
ENGINE_DEVICE Target find_chunk(double mine, double uniform, double* sums) {
  const double sum = sampling::running_sum(mine);
  sums[threadIdx.x] = sum;
  __syncthreads();
  const double target = uniform * sums[kSelect - 1];
  int chunk = sampling::first_thread(mine > 0 && sum > target);
  if (chunk == kSelect) chunk = sampling::reduce(mine > 0 ? static_cast<int>(threadIdx.x) : -1, [](int a, int b) { return a > b ? a : b; });
  return {chunk, target - (chunk > 0 ? sums[chunk - 1] : 0.0)};
}

template <class T>
__global__ void __launch_bounds__(kSelect) choose(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs,
                                                  Work work) {
  allow_next();
  wait_for_previous();
  SHARED_ARRAY(std::int32_t, counts, kMostChunks);
  const std::int64_t row = blockIdx.x;
  if (positions[row] < 0) return;
  const auto thread = static_cast<int>(threadIdx.x), lane = static_cast<int>(lane_id()), warp = thread / kWarp, chunks = static_cast<int>(work.count);
  const SampleSettings set = settings_of(settings[row], logits.cols);
  const bool mine = thread < chunks;
  const Chunk chunk = mine ? work.chunk(row, thread) : Chunk{0, 0, -infinity(), 0x7fffffff, 0, 0};
  const Best best = sampling::reduce(Best{chunk.top, chunk.at}, [](Best a, Best b) { return better(a, b); });
  const double total = sampling::reduce_sum(mine ? chunk.total * exp(static_cast<double>(chunk.top) - static_cast<double>(best.value)) : 0.0);
  std::int64_t token = best.at;
  if (set.temperature > 0) {
    const PhiloxBlock words = Philox{set.seed, 0}.block(static_cast<std::uint64_t>(positions[row]));
    const double uniform = static_cast<double>((std::uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
    const MassOf mass_of(best.value, set.temperature);
    const double mass = sampling::reduce_sum(chunk.mass);
    auto& bins = *static_cast<sampling::Bins*>(block_shared());
    const auto width = [&](int c) { return (c + 1) * std::int64_t{kChunk} < logits.cols ? kChunk : static_cast<int>(logits.cols - c * std::int64_t{kChunk}); };
    // For every chunk a warp: the sum of what is kept of its `count(c)` masses; in bins.sums.
    const auto sum_chunks = [&](const auto& count, const auto& mass_at, float least) {
      for (int c = warp; c < chunks; c += kSelect / kWarp) {
        double sum = 0;
#pragma unroll 4
        for (int i = lane; i < count(c); i += kWarp) {
          const float m = mass_at(c, i);
          if (m >= least) sum += static_cast<double>(m);
        }
        sum = warp_sum(sum);
        if (lane == 0) bins.sums[c] = sum;
      }
      __syncthreads();
      return mine ? bins.sums[thread] : 0.0;
    };
    float least = float_of(1);
    if (takes_all(set)) {
      const Target target = find_chunk(chunk.mass, uniform, bins.sums);
      if (target.chunk >= 0) {
        const std::int64_t first = target.chunk * std::int64_t{kChunk};
        token = first + sampling::draw([&](int i) { return mass_of(value_of(logits.row(row)[first + i])); }, width(target.chunk), least, target.rest);
      }
    } else {
      if (mine) counts[thread] = chunk.candidates;
      const bool complete = sampling::first_thread(chunk.candidates > kListed) == kSelect;
      const auto listed = [&](int c, int i) { return work.list(row, c)[i].mass; };
      const auto count = [&](int c) { return counts[c]; };
      const auto candidates = [&](const auto& visit) {
        for (int c = warp; c < chunks; c += kSelect / kWarp)
          for (int i = lane; i < counts[c]; i += kWarp) visit(listed(c, i));
      };
      if (complete && threshold(candidates, set, mass, false, bins, least)) {
        const Target target = find_chunk(sum_chunks(count, listed, least), uniform, bins.sums);
        if (target.chunk >= 0)
          token = work.list(row, target.chunk)[sampling::draw([&](int i) { return listed(target.chunk, i); }, counts[target.chunk], least, target.rest)].token;
      } else {
        float* masses = work.masses(row);
        const std::int64_t padded = work.count * kChunk;
        __syncthreads();  // the lists have been read
        for (std::int64_t i = thread; i < padded; i += kSelect) masses[i] = i < logits.cols ? mass_of(value_of(logits.row(row)[i])) : 0.0f;
        __syncthreads();
        const auto all = [&](const auto& visit) {
#pragma unroll 4
          for (std::int64_t i = 4 * thread; i < padded; i += 4 * kSelect) {
            float four[4];
            load_floats4(masses + i, four);
#pragma unroll
            for (int j = 0; j < 4; ++j) visit(four[j]);
          }
        };
        threshold(all, set, mass, true, bins, least);
        const auto mass_at = [&](int c, int i) { return masses[c * std::int64_t{kChunk} + i]; };
        const Target target = find_chunk(sum_chunks(width, mass_at, least), uniform, bins.sums);
        if (target.chunk >= 0)
          token = target.chunk * std::int64_t{kChunk} + sampling::draw([&](int i) { return mass_at(target.chunk, i); }, width(target.chunk), least, target.rest);
      }
    }
  }
  if (thread != 0) return;
  tokens[row] = static_cast<std::uint32_t>(token);
  logprobs[row] = static_cast<float>(static_cast<double>(value_of(logits.row(row)[token])) - static_cast<double>(best.value) - log(total));
}

constexpr std::int64_t chunks_of(std::int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

template <class T>
void start(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace, cudaStream_t stream) {
  require(logits.cols > 0 && logits.cols <= sampling::kMostMasses, "a token is chosen from 1 to ", sampling::kMostMasses, " logits; there are ", logits.cols);
  const std::int64_t count = chunks_of(logits.cols);
  // Lists first: what is read 16 bytes at a time.
  auto* candidates = static_cast<Candidate*>(workspace);
  const Work work{reinterpret_cast<Chunk*>(candidates + logits.rows * count * kListed), candidates, count};
  const dim3 grid(blocks(count), blocks(logits.rows));
  launch_chained(stream, grid, kThreads, 0, survey<T>, logits, positions, work);
  launch_chained(stream, grid, kThreads, 0, weigh<T>, logits, settings, positions, work);
  launch_chained(stream, blocks(logits.rows), kSelect, sizeof(sampling::Bins), choose<T>, logits, settings, positions, tokens, logprobs, work);
}

}  // namespace

std::int64_t sample_workspace(std::int64_t rows, std::int64_t vocab) {
  return rows * chunks_of(vocab) * static_cast<std::int64_t>(sizeof(Chunk) + kListed * sizeof(Candidate));
}

void sample(View<const float> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace,
            cudaStream_t stream) {
  start(logits, settings, positions, tokens, logprobs, workspace, stream);
}

void sample(View<const bf16> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace,
            cudaStream_t stream) {
  start(logits, settings, positions, tokens, logprobs, workspace, stream);
}

}  // namespace engine::cuda
