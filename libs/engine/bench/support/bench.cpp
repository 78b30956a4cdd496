#include "support/bench.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "core/rng.h"

#ifdef ENGINE_X86
#include <immintrin.h>
#endif

namespace engine::bench {
namespace {

// Wall time; with one thread its CPU time, which a busy machine disturbs less.
double now() {
  timespec t{};
  ::clock_gettime(thread_count() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Independent chains of multiply-adds, enough to hide their latency. Returns what they sum to, so that they are not removed.
#ifdef ENGINE_X86
__attribute__((target("avx512f"))) float multiply_adds_512(std::int64_t rounds) {
  __m512 s[12];
  for (int i = 0; i < 12; ++i) s[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (std::int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) s[i] = _mm512_fmadd_ps(s[i], a, b);
  __m512 total = s[0];
  for (int i = 1; i < 12; ++i) total = _mm512_add_ps(total, s[i]);
  return _mm512_cvtss_f32(total);
}
__attribute__((target("avx2,fma"))) float multiply_adds_256(std::int64_t rounds) {
  __m256 s[12];
  for (int i = 0; i < 12; ++i) s[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (std::int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) s[i] = _mm256_fmadd_ps(s[i], a, b);
  __m256 total = s[0];
  for (int i = 1; i < 12; ++i) total = _mm256_add_ps(total, s[i]);
  return _mm256_cvtss_f32(total);
}
__attribute__((target("avx2"))) std::int64_t read_all(const std::uint8_t* p, std::int64_t bytes) {
  __m256i s[4] = {};
  for (std::int64_t i = 0; i + 128 <= bytes; i += 128)
    for (int j = 0; j < 4; ++j) s[j] = _mm256_xor_si256(s[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(s[0], s[1]), _mm256_xor_si256(s[2], s[3]));
  return _mm256_extract_epi64(all, 0);
}
#endif

Floors measure(ThreadPool& pool) {
  Floors floors{1e9, 1e9};
#ifdef ENGINE_X86
  const Isa isa = detected_isa();
  if (isa == Isa::scalar) return floors;
  [[maybe_unused]] static volatile float sink;
  constexpr std::int64_t kRounds = 4'000'000;
  const double lanes = isa >= Isa::avx512 ? 16 : 8;
  const double fma_time = best_time([&] {
    pool.parallel(pool.threads(), [&](std::int64_t, int) { sink = isa >= Isa::avx512 ? multiply_adds_512(kRounds) : multiply_adds_256(kRounds); });
  });
  floors.flops = 2.0 * 12 * lanes * kRounds * pool.threads() / fma_time;
  // Far larger than a share of any last-level cache.
  const std::vector<std::uint8_t> memory(std::size_t{1} << 30, 1);
  const auto bytes = static_cast<std::int64_t>(memory.size());
  [[maybe_unused]] static volatile std::int64_t read_sink;
  const double read_time = best_time([&] {
    pool.parallel(pool.threads(), [&](std::int64_t part, int) { read_sink = read_all(memory.data() + bytes * part / pool.threads(), bytes / pool.threads()); });
  });
  floors.bandwidth = static_cast<double>(bytes) / read_time;
#endif
  return floors;
}

}  // namespace

double best_time(const std::function<void()>& body, double seconds) {
  body();
  double best = 1e30;
  const double begin = now();
  for (int run = 0; run < 3 || now() - begin < seconds; ++run) {
    const double start = now();
    body();
    best = std::min(best, now() - start);
  }
  return best;
}

const Floors& floors(ThreadPool& pool) {
  static const Floors measured = measure(pool);
  return measured;
}

void print_header(const Exec& ex, const char* title) {
  const Floors& f = floors(ex.pool);
  std::printf("%s: %s, %s, %s, %d threads, peak %.0f GFLOP/s fp32, memory %.1f GB/s\n", title, cpu_name().c_str(),
              std::string(isa_name(ex.isa)).c_str(), ex.compute == Compute::bf16 ? "bf16" : "f32", ex.pool.threads(), f.flops * 1e-9, f.bandwidth * 1e-9);
}

void print_row(const Exec& ex, const std::string& what, double seconds, double flops, double bytes) {
  const Floors& f = floors(ex.pool);
  std::printf("  %-52s %10.1f us", what.c_str(), seconds * 1e6);
  if (flops > 0) std::printf("  %8.1f GFLOP/s (%5.1f %% of peak)", flops / seconds * 1e-9, 100 * flops / seconds / f.flops);
  if (bytes > 0) std::printf("  %7.2f GB/s (%5.1f %% of memory)", bytes / seconds * 1e-9, 100 * bytes / seconds / f.bandwidth);
  std::printf("\n");
  std::fflush(stdout);
}

std::vector<float> values(std::int64_t n, std::uint64_t stream) {
  const Philox words{3407, stream};
  std::vector<float> result(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = 2.0f * words.uniform(i) - 1.0f;
  return result;
}

int thread_count() {
  static const int count = [] {
    const char* word = std::getenv("MEDMESH_ENGINE_THREADS");
    return word != nullptr ? std::max(1, std::atoi(word)) : available_threads();
  }();
  return count;
}

}  // namespace engine::bench
