// sample_select.cuh: what one block of kSelect threads finds in many masses (floats in [0, 1]) that lie in memory: the value from which on there are so
// many of them, or so much of them; and the one at which their running sum passes a target.
//   A value is found ten bits at a time: masses are counted and summed in 1,024 bins by the bits that come next, those of the highest bin that is not wholly
//   among the wanted go on. Floats in one bin share their exponent, so a bin's sum is one of integers: exact, in whatever order it is made.
#pragma once

#include "cuda/runtime/ptx.h"

namespace engine::cuda::sampling {

inline constexpr int kSelect = 1024;        // threads, and bins: thread t has bin kBins - 1 - t
inline constexpr int kBins = kSelect, kBinBits = 10;
inline constexpr std::int64_t kMostMasses = std::int64_t{1} << 20;  // halves of significands are summed in 32 bits

// Over the block's threads. Every thread has the result; op(a, a) is a.
template <class T, class Op>
ENGINE_DEVICE T reduce(T value, const Op& op) {
  SHARED_ARRAY(T, parts, 32);
  const auto fold = [&](T v) {
    for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) v = op(v, shuffle_xor(v, mask));
    return v;
  };
  value = fold(value);
  __syncthreads();  // an earlier reduction may still be read
  if (lane_id() == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  return fold(parts[lane_id() % (blockDim.x / kWarp)]);
}
// In one order.
template <class T>
ENGINE_DEVICE T reduce_sum(T value) {
  SHARED_ARRAY(T, parts, 32);
  value = warp_sum(value);
  __syncthreads();
  if (lane_id() == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_sum(lane_id() < blockDim.x / kWarp ? parts[lane_id()] : T{});
}

// The least thread for which `is`; blockDim.x when there is none.
ENGINE_DEVICE int first_thread(bool is) {
  return reduce(static_cast<int>(is ? threadIdx.x : blockDim.x), [](int a, int b) { return a < b ? a : b; });
}

// The sum over this thread and those before it.
template <class T>
ENGINE_DEVICE T running_sum(T value) {
  SHARED_ARRAY(T, parts, 32);
  const unsigned lane = lane_id(), warp = threadIdx.x / kWarp;
  const auto scan = [&](T v) {
    for (unsigned d = 1; d < kWarp; d *= 2) {
      const T before = shuffle(v, lane - d);
      if (lane >= d) v += before;
    }
    return v;
  };
  value = scan(value);
  __syncthreads();
  if (lane == kWarp - 1) parts[warp] = value;
  __syncthreads();
  const T sums = scan(lane < blockDim.x / kWarp ? parts[lane] : T{}), before = shuffle(sums, warp + kWarp - 1);  // of lane warp - 1
  return warp == 0 ? value : before + value;
}

// How many, and how much of them.
struct Tally {
  double mass;
  std::int32_t count;
};

struct Found {
  bool any;      // there are enough
  float least;   // the largest value for which the masses from it on are enough
  double mass;   // of those
};

// Room in shared memory.
struct Bins {
  double sums[kBins];
  std::int32_t running[kBins];
  unsigned counts[kBins], lows[kBins], highs[kBins];  // of the masses of a bin, of the low 12 bits of their significands, of the high 12
};

// masses(visit) calls visit(mass) for every mass, each by one thread. enough(Tally): of the masses from some value on, whether they are.
template <class Masses, class Enough>
ENGINE_DEVICE Found find_least(const Masses& masses, const Enough& enough, Bins& bins) {
  const auto thread = static_cast<int>(threadIdx.x), bin = kBins - 1 - thread;
  std::uint32_t prefix = 0;     // of the values that are still looked at: their bits above shift + kBinBits
  Tally above{0, 0};            // those
  std::int32_t within = 0;      // how many are
  double mass = 0;
  for (int shift = 2 * kBinBits; shift >= 0; shift -= kBinBits) {
    const bool whole = shift == 2 * kBinBits;
    bins.counts[bin] = bins.lows[bin] = bins.highs[bin] = 0;
    __syncthreads();
    masses([&](float m) {
      const std::uint32_t bits = bits_of(m);
      if (!(m > 0) || bits >> (shift + kBinBits) != prefix) return;
      const std::uint32_t significand = (bits & 0x7fffffu) | (bits >= 0x800000u ? 0x800000u : 0u);
      const std::uint32_t at = bits >> shift & (kBins - 1);
      add_shared(bins.counts + at, 1u);
      add_shared(bins.lows + at, significand & 0xfffu);
      add_shared(bins.highs + at, significand >> 12);
    });
    __syncthreads();
    const std::uint32_t here = (prefix << kBinBits | static_cast<std::uint32_t>(bin)) << shift, exponent = here >> 23;
    const auto integer = (std::uint64_t{bins.highs[bin]} << 12) + bins.lows[bin];
    const Tally all{above.mass + running_sum(ldexp(static_cast<double>(integer), static_cast<int>(exponent > 0 ? exponent : 1) - 150)),
                    above.count + running_sum(static_cast<std::int32_t>(bins.counts[bin]))};
    bins.sums[thread] = all.mass;
    bins.running[thread] = all.count;
    // Where rounding keeps the last of them from being enough, as they were found to be together, it is the last.
    const int first = first_thread(bins.counts[bin] > 0 && (enough(all) || (!whole && all.count == above.count + within)));
    if (first == kSelect) return {false, 0, 0};
    mass = bins.sums[first];
    const Tally before = first > 0 ? Tally{bins.sums[first - 1], bins.running[first - 1]} : above;
    within = bins.running[first] - before.count;
    above = before;
    prefix = prefix << kBinBits | static_cast<std::uint32_t>(kBins - 1 - first);
    __syncthreads();  // all have read
  }
  return {true, float_of(prefix), mass};
}

// The number in [0, count) at which the running sum of the masses that are at least `least` passes `target`; the last of them when it never does, or 0.
// mass_at(i): mass i.
template <class MassAt>
ENGINE_DEVICE int draw(const MassAt& mass_at, int count, float least, double target) {
  SHARED_ARRAY(int, found, 1);
  const int each = (count + kSelect - 1) / kSelect, first = static_cast<int>(threadIdx.x) * each, last = first + each < count ? first + each : count;
  double sum = 0;
  int kept = -1;
  for (int i = first; i < last; ++i) {
    const float mass = mass_at(i);
    if (!(mass >= least)) continue;
    sum += static_cast<double>(mass);
    kept = i;
  }
  const double running = running_sum(sum);
  const int by = first_thread(kept >= 0 && running > target);
  if (by == kSelect) return reduce(kept < 0 ? 0 : kept, [](int a, int b) { return a > b ? a : b; });
  if (static_cast<int>(threadIdx.x) == by) {
    double cumulative = running - sum;
    for (int i = first; i < last; ++i) {
      const float mass = mass_at(i);
      if (!(mass >= least)) continue;
      cumulative += static_cast<double>(mass);
      kept = i;
      if (cumulative > target) break;
    }
    *found = kept;
  }
  __syncthreads();
  return *found;
}

}  // namespace engine::cuda::sampling
