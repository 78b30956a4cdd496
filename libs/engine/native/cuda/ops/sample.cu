// sample.cu: a row of logits is read by many blocks, chunk by chunk, twice: for its largest value and its Σ exp, then for its masses exp((z - largest) / T),
//   of which those that can matter are kept in a list. One block a row then finds the thresholds by bisection over the bits of floats, whose order is that of
//   the values, and draws. A row whose thresholds lie below the list, which flat distributions have, is bisected over all its logits: slow, and right.
//   Floor: 8 B a logit from the second-level cache (4 when greedy), and three launches. Sums are fp64, in an order that depends on the row alone.
#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/block_reduce.h"
#include "cuda/ops/sample.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr int kThreads = 256, kEach = 16, kChunk = kThreads * kEach;
constexpr int kListed = 1024;    // candidates of one chunk
constexpr int kMost = 8192;      // candidates of a row
constexpr float kCandidate = 0x1p-18f;  // the least mass of one; the largest mass of a row is 1

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
};

ENGINE_DEVICE float value_of(float z) { return z; }
ENGINE_DEVICE float value_of(bf16 z) { return widen(z); }

struct Best {
  float value;
  std::int32_t at;
};
// The larger, the first of equals.
ENGINE_DEVICE Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }

template <class T>
__global__ void __launch_bounds__(kThreads) survey(View<const T> logits, const std::int32_t* positions, Work work) {
  allow_next();
  wait_for_previous();
  SHARED_ARRAY(Best, bests, kThreads / kWarp);
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
  for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) best = better(best, {shuffle_xor(best.value, mask), shuffle_xor(best.at, mask)});
  if (lane_id() == 0) bests[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w) best = better(best, bests[w]);
  double total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (values[i] != -infinity()) total += static_cast<double>(expf(values[i] - best.value));
  total = block_sum(total);
  if (threadIdx.x == 0) work.chunk(row, blockIdx.x) = {total, 0, best.value, best.at, 0, 0};
}

// The row's largest value, by every thread.
ENGINE_DEVICE Best best_of(const Work& work, std::int64_t row) {
  Best best{work.chunk(row, 0).top, work.chunk(row, 0).at};
  for (std::int64_t c = 1; c < work.count; ++c) best = better(best, {work.chunk(row, c).top, work.chunk(row, c).at});
  return best;
}

template <class T>
struct Masses {
  const T* row;
  std::int64_t cols;
  double top, temperature;

  ENGINE_DEVICE float operator()(std::int64_t i) const { return static_cast<float>(exp((static_cast<double>(value_of(row[i])) - top) / temperature)); }
};

// The sum of `count` over the block's threads before this one.
ENGINE_DEVICE int sum_before(int count) {
  SHARED_ARRAY(int, sums, 32);
  const unsigned lane = lane_id(), warp = threadIdx.x / kWarp;
  int sum = count;
  for (unsigned d = 1; d < kWarp; d *= 2) {
    const int before = shuffle(sum, lane - d);
    if (lane >= d) sum += before;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  sum -= count;
  for (unsigned w = 0; w < warp; ++w) sum += sums[w];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) weigh(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, Work work) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.y, first = std::int64_t{blockIdx.x} * kChunk + kEach * threadIdx.x;
  if (positions[row] < 0 || settings[row].temperature == 0) return;
  const Masses<T> mass_of{logits.row(row), logits.cols, static_cast<double>(best_of(work, row).value), settings[row].temperature};
  float masses[kEach];
  double sum = 0;
  int listed = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    masses[i] = first + i < logits.cols ? mass_of(first + i) : 0.0f;
    if (!(masses[i] > 0)) masses[i] = 0;  // NaN, too
    sum += static_cast<double>(masses[i]);
    listed += masses[i] >= kCandidate ? 1 : 0;
  }
  int at = sum_before(listed);
  const int all = block_sum(listed);
  Candidate* list = work.list(row, blockIdx.x);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (masses[i] >= kCandidate) {
      if (at < kListed) list[at] = {static_cast<std::uint32_t>(first + i), masses[i]};
      ++at;
    }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    work.chunk(row, blockIdx.x).mass = sum;
    work.chunk(row, blockIdx.x).candidates = all;
  }
}

// Masses in the order of their tokens: of a list in shared memory, or of the whole row.
struct Listed {
  const Candidate* list;
  std::int64_t size;
  ENGINE_DEVICE float mass(std::int64_t i) const { return list[i].mass; }
  ENGINE_DEVICE std::int64_t token(std::int64_t i) const { return list[i].token; }
};
template <class T>
struct All {
  Masses<T> masses;
  std::int64_t size;
  ENGINE_DEVICE float mass(std::int64_t i) const {
    const float m = masses(i);
    return m > 0 ? m : 0.0f;
  }
  ENGINE_DEVICE std::int64_t token(std::int64_t i) const { return i; }
};

template <class From>
ENGINE_DEVICE double mass_from(const From& from, float least) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < from.size; i += kThreads) {
    const float m = from.mass(i);
    if (m >= least) sum += static_cast<double>(m);
  }
  return block_sum(sum);
}
template <class From>
ENGINE_DEVICE std::int64_t count_from(const From& from, float least) {
  std::int64_t n = 0;
  for (std::int64_t i = threadIdx.x; i < from.size; i += kThreads) n += from.mass(i) >= least ? 1 : 0;
  return block_sum(n);
}

// The largest float in [least, 1] for which enough(value) holds; enough(least) is taken for granted.
template <class Enough>
ENGINE_DEVICE float largest_enough(float least, const Enough& enough) {
  std::uint32_t low = bits_of(least), high = bits_of(1.0f) + 1;  // enough at low, not at high
  while (low + 1 < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (enough(float_of(middle))) low = middle;
    else high = middle;
  }
  return float_of(low);
}

// The token at which the running sum of the masses that are at least `least` passes `target`; the last of them when it never does.
template <class From>
ENGINE_DEVICE std::int64_t draw(const From& from, std::int64_t begin, std::int64_t end, float least, double target) {
  SHARED_ARRAY(double, sums, kThreads);
  SHARED_ARRAY(std::int64_t, lasts, kThreads);
  SHARED_ARRAY(std::int64_t, found, 1);
  const std::int64_t each = (end - begin + kThreads - 1) / kThreads, first = begin + threadIdx.x * each, last = first + each < end ? first + each : end;
  double sum = 0;
  std::int64_t kept = -1;
  for (std::int64_t i = first; i < last; ++i) {
    const float mass = from.mass(i);
    if (!(mass >= least)) continue;
    sum += static_cast<double>(mass);
    kept = i;
  }
  __syncthreads();
  sums[threadIdx.x] = sum;
  lasts[threadIdx.x] = kept;
  __syncthreads();
  if (threadIdx.x == 0) {
    double before = 0;
    std::int64_t at = begin;
    for (int t = 0; t < kThreads; ++t) {
      if (lasts[t] < 0) continue;
      at = lasts[t];
      if (before + sums[t] > target) {
        double cumulative = before;
        for (std::int64_t i = begin + t * each; i <= lasts[t]; ++i) {
          const float mass = from.mass(i);
          if (!(mass >= least)) continue;
          cumulative += static_cast<double>(mass);
          at = i;
          if (cumulative > target) break;
        }
        break;
      }
      before += sums[t];
    }
    *found = from.token(at);
  }
  __syncthreads();
  return *found;
}

// top-k, top-p and min-p over `from`, which has all masses from `floor` on: all there are, or (not `whole`) there may be less, and then false when a
// threshold may lie among those.
template <class From>
ENGINE_DEVICE bool find_least(const From& from, const SampleSettings& set, double all_mass, float floor, bool whole, float& least) {
  least = float_of(1);  // more than what is masked
  bool counted = false;
  if (set.top_k > 0) {
    counted = count_from(from, floor) >= set.top_k;
    if (counted) least = largest_enough(floor, [&](float value) { return count_from(from, value) >= set.top_k; });
    else if (!whole) return false;
  }
  if (set.top_p < 1) {
    const double wanted = set.top_p * (counted ? mass_from(from, least) : all_mass);
    if (mass_from(from, floor) >= wanted) least = fmaxf(least, largest_enough(floor, [&](float value) { return mass_from(from, value) >= wanted; }));
    else if (!whole) return false;
  }
  least = fmaxf(least, static_cast<float>(set.min_p));
  return least >= floor;
}

template <class T>
__global__ void __launch_bounds__(kThreads) choose(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs,
                                                   Work work) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.x;
  if (positions[row] < 0) return;
  SampleSettings set = settings[row];
  const Best best = best_of(work, row);
  double total = 0, mass = 0;
  std::int64_t candidates = 0;
  bool complete = true;  // every list holds all of its chunk's
  for (std::int64_t c = 0; c < work.count; ++c) {
    const Chunk chunk = work.chunk(row, c);
    total += chunk.total * exp(static_cast<double>(chunk.top) - static_cast<double>(best.value));
    if (set.temperature == 0) continue;
    mass += chunk.mass;
    candidates += chunk.candidates;
    complete = complete && chunk.candidates <= kListed;
  }
  std::int64_t token = best.at;
  if (set.temperature > 0) {
    if (set.top_k >= logits.cols) set.top_k = 0;
    auto* list = static_cast<Candidate*>(block_shared());
    complete = complete && candidates <= kMost;
    if (complete) {
      std::int64_t to = 0;
      for (std::int64_t c = 0; c < work.count; to += work.chunk(row, c).candidates, ++c)
        for (std::int64_t i = threadIdx.x; i < work.chunk(row, c).candidates; i += kThreads) list[to + i] = work.list(row, c)[i];
    }
    __syncthreads();
    const PhiloxBlock words = Philox{set.seed, 0}.block(static_cast<std::uint64_t>(positions[row]));
    const double uniform = static_cast<double>((std::uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
    const Listed listed{list, candidates};
    const All<T> all{{logits.row(row), logits.cols, static_cast<double>(best.value), set.temperature}, logits.cols};
    float least = 0;
    if (set.top_k == 0 && !(set.top_p < 1) && !(set.min_p > 0)) {  // all of them: the chunk first
      double target = uniform * mass;
      std::int64_t c = 0, last = 0;
      for (; c < work.count; ++c) {
        const double here = work.chunk(row, c).mass;
        if (here > 0) last = c;
        if (here > target) break;
        target -= here;
      }
      if (c == work.count) c = last;
      const std::int64_t begin = c * kChunk, end = begin + kChunk < logits.cols ? begin + kChunk : logits.cols;
      token = draw(all, begin, end, float_of(1), target);
    } else if (complete && find_least(listed, set, mass, kCandidate, false, least)) {
      token = draw(listed, 0, listed.size, least, uniform * mass_from(listed, least));
    } else {
      find_least(all, set, mass, float_of(1), true, least);
      token = draw(all, 0, all.size, least, uniform * mass_from(all, least));
    }
  }
  if (threadIdx.x != 0) return;
  if (token >= logits.cols) token = 0;
  tokens[row] = static_cast<std::uint32_t>(token);
  logprobs[row] = static_cast<float>(static_cast<double>(value_of(logits.row(row)[token])) - static_cast<double>(best.value) - log(total));
}

constexpr std::int64_t chunks_of(std::int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

template <class T>
void start(View<const T> logits, const SampleSettings* settings, const std::int32_t* positions, std::uint32_t* tokens, float* logprobs, void* workspace, cudaStream_t stream) {
  require(logits.cols > 0, "a token cannot be chosen from no logits");
  const std::int64_t count = chunks_of(logits.cols);
  auto* chunks = static_cast<Chunk*>(workspace);
  const Work work{chunks, reinterpret_cast<Candidate*>(chunks + logits.rows * count), count};
  const dim3 grid(blocks(count), blocks(logits.rows));
  launch_chained(stream, grid, kThreads, 0, survey<T>, logits, positions, work);
  launch_chained(stream, grid, kThreads, 0, weigh<T>, logits, settings, positions, work);
  launch_chained(stream, blocks(logits.rows), kThreads, kMost * static_cast<std::int64_t>(sizeof(Candidate)), choose<T>, logits, settings, positions, tokens, logprobs, work);
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
