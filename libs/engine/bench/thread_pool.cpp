// The price of handing a job over: empty parts, and a few microseconds of work split in two.
#include "core/thread_pool.h"

#include <chrono>
#include <cstdio>

#include "support/bench.h"

using namespace engine;

int main() {
  ThreadPool pool(bench::thread_count());
  constexpr int kJobs = 20000;
  const auto per_job = [&](auto job) {
    return bench::best_time([&] {
             for (int i = 0; i < kJobs; ++i) job();
           }) /
           kJobs * 1e6;
  };
  std::printf("thread_pool: %d threads\n", pool.threads());
  std::printf("  one part, run by the caller          %8.3f us\n", per_job([&] { pool.parallel(1, [](std::int64_t, int) {}); }));
  std::printf("  a part for each thread, empty        %8.3f us\n", per_job([&] { pool.parallel(pool.threads(), [](std::int64_t, int) {}); }));
  const auto spin = [](double microseconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double, std::micro>(microseconds);
    while (std::chrono::steady_clock::now() < end) {
    }
  };
  std::printf("  5 us of work for each thread         %8.3f us\n", per_job([&] { pool.parallel(pool.threads(), [&](std::int64_t, int) { spin(5); }); }));
}
