// thread_pool.h: threads that share the parts of one job at a time.
//   The caller works too, so a pool of 1 has no threads of its own. Parts are handed out in ascending order to whoever is free;
//   a job must give the same result whoever computes which part (each part owns its outputs), so no result depends on the count.
//   In a process with CPUs of its own its first pool's threads stay on one each (cpus_to_stay_on), the caller wherever it is left.
//   Hand-off is cheap: idle threads spin for some tens of microseconds before they sleep, because the next operation of a
//   forward pass usually follows at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace engine {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // ≥ 1, the caller included. Throws invalid; oom when the system refuses a thread.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept { return static_cast<int>(workspaces_.size()); }

  // body(part, worker) once for every part in [0, parts); worker in [0, threads()) is unique among those running now.
  // Returns when all are done; rethrows the first exception. A call from inside a body runs its parts on the spot, as that worker.
  // One caller at a time: a second thread's call while one runs throws internal.
  template <class Body>
  void parallel(std::int64_t parts, Body&& body) {
    auto call = [](void* context, std::int64_t part, int worker) { (*static_cast<std::remove_reference_t<Body>*>(context))(part, worker); };
    run(parts, call, const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

  // body(begin, end) over a split of [0, n) in ranges of at least `grain` elements: `grain` is what is too little to hand over.
  template <class Body>
  void for_ranges(std::int64_t n, std::int64_t grain, Body&& body) {
    if (n <= 0) return;
    const std::int64_t most = 4 * std::int64_t{threads()};  // a few parts each, so that a thread that starts late costs little
    std::int64_t parts = n / (grain > 0 ? grain : 1);
    parts = parts < 1 ? 1 : (parts > most ? most : parts);
    if (threads() == 1) parts = 1;
    parallel(parts, [&](std::int64_t part, int) { body(n * part / parts, n * (part + 1) / parts); });
  }

  // `bytes` of scratch memory that belong to this worker until it asks again; 64-byte aligned, contents undefined. Grows, never
  // shrinks. A body asks with its own worker number; shared_workspace is for the caller of parallel, between its jobs.
  void* workspace(int worker, std::size_t bytes);
  void* shared_workspace(std::size_t bytes);
  std::int64_t workspace_bytes() const noexcept;  // all of them

 private:
  using Call = void (*)(void* context, std::int64_t part, int worker);
  struct Workspace {
    std::unique_ptr<std::byte[]> memory;
    std::size_t bytes = 0;
    void* get(std::size_t wanted);
  };

  void run(std::int64_t parts, Call call, void* context);
  bool take_part(int worker);  // false when none is left
  void worker_loop(int worker);
  void stop();

  // Low half: parts not yet taken; high half: the job's number. One compare-and-swap takes a part of exactly the current job,
  // and the job cannot end before that part does, so the fields below are stable while a part is held.
  alignas(64) std::atomic<std::uint64_t> tickets_{0};
  alignas(64) std::atomic<std::int64_t> finished_{0};
  alignas(64) std::atomic<std::uint32_t> wake_{0};
  std::atomic<std::int32_t> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> busy_{false};

  std::int64_t parts_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;

  std::mutex failure_mutex_;
  std::exception_ptr failure_;

  std::vector<Workspace> workspaces_;
  Workspace shared_;
  std::vector<std::thread> threads_;
  bool stays_ = false;  // this is the pool whose threads stay where they are
};

}  // namespace engine
