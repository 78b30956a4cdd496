#include "core/thread_pool.h"

#include <sched.h>
#include <stdlib.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/cpu_info.h"
#include "core/test.h"

namespace engine {

namespace {

// How many CPUs each worker may run on. Every part waits until all are taken, so each worker takes one.
std::vector<int> cpus_of_workers(ThreadPool& pool) {
  std::vector<int> cpus(static_cast<std::size_t>(pool.threads()));
  std::atomic<int> arrived{0};
  pool.parallel(pool.threads(), [&](std::int64_t, int worker) {
    cpu_set_t mask;
    if (::sched_getaffinity(0, sizeof mask, &mask) == 0) cpus[static_cast<std::size_t>(worker)] = CPU_COUNT(&mask);
    ++arrived;
    while (arrived.load() < pool.threads()) ::sched_yield();
  });
  return cpus;
}

}  // namespace

TEST("with MEDMESH_ENGINE_PIN=1 the first pool's own threads stay on one CPU each, the caller's and a second pool's where they were") {
  ::setenv("MEDMESH_ENGINE_PIN", "1", 1);
  if (cpus_to_stay_on(2).empty()) {
    ::unsetenv("MEDMESH_ENGINE_PIN");
    SKIP("fewer than two CPUs for this process");
  }
  cpu_set_t mask;
  ::sched_getaffinity(0, sizeof mask, &mask);
  const int all = CPU_COUNT(&mask);
  {
    ThreadPool first(2), second(2);
    CHECK(cpus_of_workers(first) == std::vector<int>({all, 1}));
    CHECK(cpus_of_workers(second) == std::vector<int>({all, all}));
  }
  ThreadPool later(2);
  CHECK(cpus_of_workers(later) == std::vector<int>({all, 1}));
  CHECK(cpus_to_stay_on(1 << 20).empty());
  ::setenv("MEDMESH_ENGINE_PIN", "0", 1);
  CHECK(cpus_to_stay_on(2).empty());
  ::setenv("MEDMESH_ENGINE_PIN", "yes", 1);
  CHECK_THROWS(invalid, cpus_to_stay_on(2));
  ::unsetenv("MEDMESH_ENGINE_PIN");
}

TEST("every part of a job runs exactly once, whatever the number of threads") {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const std::int64_t parts : {0, 1, 2, 63, 4097}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(parts));
      pool.parallel(parts, [&](std::int64_t part, int worker) {
        runs[static_cast<std::size_t>(part)].fetch_add(1);
        if (worker < 0 || worker >= threads) runs[static_cast<std::size_t>(part)].store(-1000);
      });
      bool once = true;
      for (const auto& count : runs) once = once && count.load() == 1;
      CHECK(once);
    }
  }
}

TEST("a hundred thousand small jobs in a row all see the results of the one before") {
  ThreadPool pool(3);
  std::array<std::int64_t, 4> cells{};
  for (int job = 0; job < 100000; ++job)
    pool.parallel(4, [&](std::int64_t part, int) { cells[static_cast<std::size_t>(part)] += 1; });
  for (const std::int64_t cell : cells) CHECK_EQ(cell, 100000);
}

TEST("threads that went to sleep wake up for the next job") {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    // The two parts wait for each other, so the job ends only if two threads take part.
    std::atomic<int> present{0};
    pool.parallel(2, [&](std::int64_t, int) {
      present.fetch_add(1);
      while (present.load() < 2) std::this_thread::yield();
    });
    CHECK_EQ(present.load(), 2);
  }
}

TEST("for_ranges covers the range once, in pieces no smaller than the grain") {
  ThreadPool pool(2);
  for (const std::int64_t n : {0, 1, 63, 65, 4097}) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
    std::atomic<bool> small{false};
    pool.for_ranges(n, 16, [&](std::int64_t first, std::int64_t last) {
      if (last - first < 16 && n >= 16) small.store(true);
      for (std::int64_t i = first; i < last; ++i) seen[static_cast<std::size_t>(i)].fetch_add(1);
    });
    bool once = true;
    for (const auto& count : seen) once = once && count.load() == 1;
    CHECK(once);
    CHECK(!small.load());
  }
}

TEST("the first exception of a part reaches the caller, and the pool works on") {
  ThreadPool pool(2);
  CHECK_THROWS(corrupt, pool.parallel(100, [](std::int64_t part, int) {
    if (part == 41) fail(Code::corrupt, "part 41");
  }));
  std::atomic<int> runs{0};
  pool.parallel(10, [&](std::int64_t, int) { runs.fetch_add(1); });
  CHECK_EQ(runs.load(), 10);
}

TEST("a job inside a part runs on the spot as the same worker") {
  ThreadPool pool(2);
  std::atomic<int> inner{0}, wrong{0};
  pool.parallel(4, [&](std::int64_t, int outer_worker) {
    pool.parallel(5, [&](std::int64_t, int worker) {
      inner.fetch_add(1);
      if (worker != outer_worker) wrong.fetch_add(1);
    });
  });
  CHECK_EQ(inner.load(), 20);
  CHECK_EQ(wrong.load(), 0);
}

TEST("a second thread that uses a busy pool is told so") {
  ThreadPool pool(1);
  std::string seen;
  bool refused = false;
  pool.parallel(1, [&](std::int64_t, int) {
    std::thread other([&] { refused = test::throws_code(Code::internal, [&] { pool.parallel(1, [](std::int64_t, int) {}); }, seen); });
    other.join();
  });
  CHECK(refused);
}

TEST("workspaces are aligned, grow, and belong to one worker each") {
  ThreadPool pool(2);
  auto* first = static_cast<std::byte*>(pool.workspace(0, 100));
  auto* second = static_cast<std::byte*>(pool.workspace(1, 100));
  std::memset(first, 1, 100);
  std::memset(second, 2, 100);
  CHECK(first[99] == std::byte{1});
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(pool.workspace(0, 1 << 20)) % 64, 0u);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(pool.shared_workspace(12345)) % 64, 0u);
  CHECK(pool.workspace_bytes() >= (1 << 20) + 100 + 12345);
  CHECK_EQ(pool.workspace(0, 64), pool.workspace(0, 1 << 20));  // never shrinks
}

TEST("a pool of no threads is refused") { CHECK_THROWS(invalid, ThreadPool(0)); }

}  // namespace engine
