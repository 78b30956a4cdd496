#include "core/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <new>
#include <system_error>
#include <utility>

#include "core/cpu_info.h"
#include "core/error.h"

#ifdef ENGINE_X86
#include <immintrin.h>
#endif

namespace engine {
namespace {

constexpr std::chrono::microseconds kSpin{60};
constexpr std::uint64_t kCountMask = 0xffffffffu;
constexpr std::size_t kAlignment = 64;

// Which pool this thread is inside of, and as which worker.
thread_local const ThreadPool* inside_pool = nullptr;
thread_local int inside_worker = 0;

// Whether some pool's threads stay on their CPUs: a second one would put its own on the same.
std::atomic<bool> a_pool_stays{false};

// Where the system refuses, the thread runs anywhere.
void stay_on(int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  ::sched_setaffinity(0, sizeof only, &only);
}

void relax() {
#ifdef ENGINE_X86
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until ready() or until kSpin has gone by; true when ready.
template <class Ready>
bool spin_until(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

void* ThreadPool::Workspace::get(std::size_t wanted) {
  if (wanted + kAlignment > bytes) {
    memory.reset();
    bytes = 0;
    const std::size_t rounded = (wanted + kAlignment + 4095) / 4096 * 4096;
    try {
      memory.reset(new std::byte[rounded]);
    } catch (const std::bad_alloc&) {
      fail(Code::oom, "cannot allocate ", rounded, " bytes of scratch memory");
    }
    bytes = rounded;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory.get());
  return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

ThreadPool::ThreadPool(int threads) {
  require(threads >= 1 && threads <= 1024, "a pool of ", threads, " threads; use 1 to 1024");
  workspaces_.resize(static_cast<std::size_t>(threads));
  std::vector<int> cpus;
  if (threads > 1) cpus = cpus_to_stay_on(threads);
  stays_ = !cpus.empty() && !a_pool_stays.exchange(true);
  try {
    for (int worker = 1; worker < threads; ++worker)
      threads_.emplace_back([this, worker, cpu = stays_ ? cpus[static_cast<std::size_t>(worker)] : -1] {
        if (cpu >= 0) stay_on(cpu);
        worker_loop(worker);
      });
  } catch (const std::system_error& error) {
    stop();
    fail(Code::oom, "cannot start a pool of ", threads, " threads: ", error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  if (stays_) a_pool_stays.store(false);
}

void* ThreadPool::workspace(int worker, std::size_t bytes) { return workspaces_[static_cast<std::size_t>(worker)].get(bytes); }
void* ThreadPool::shared_workspace(std::size_t bytes) { return shared_.get(bytes); }

std::int64_t ThreadPool::workspace_bytes() const noexcept {
  std::size_t total = shared_.bytes;
  for (const Workspace& workspace : workspaces_) total += workspace.bytes;
  return static_cast<std::int64_t>(total);
}

bool ThreadPool::take_part(int worker) {
  std::uint64_t seen = tickets_.load(std::memory_order_acquire);
  do {
    if ((seen & kCountMask) == 0) return false;
  } while (!tickets_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire));
  const std::int64_t parts = parts_;
  try {
    call_(context_, parts - static_cast<std::int64_t>(seen & kCountMask), worker);
  } catch (...) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
  if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) finished_.notify_one();
  return true;
}

void ThreadPool::worker_loop(int worker) {
  inside_pool = this;
  inside_worker = worker;
  const auto work_or_stop = [this] { return (tickets_.load() & kCountMask) != 0 || stopping_.load(); };
  while (!stopping_.load(std::memory_order_relaxed)) {
    while (take_part(worker)) {
    }
    if (spin_until(work_or_stop)) continue;
    const std::uint32_t before = wake_.load();
    sleepers_.fetch_add(1);
    if (!work_or_stop()) wake_.wait(before);  // a job published after `before` was read has changed wake_, so none is missed
    sleepers_.fetch_sub(1);
  }
}

void ThreadPool::run(std::int64_t parts, Call call, void* context) {
  if (parts <= 0) return;
  if (inside_pool == this) {
    for (std::int64_t part = 0; part < parts; ++part) call(context, part, inside_worker);
    return;
  }
  require(Code::internal, parts <= static_cast<std::int64_t>(kCountMask), "a job of ", parts, " parts");
  require(Code::internal, !busy_.exchange(true, std::memory_order_acquire), "two threads use one pool at the same time");
  struct Release {
    ThreadPool& pool;
    const ThreadPool* outer;
    int outer_worker;
    ~Release() {
      inside_pool = outer;
      inside_worker = outer_worker;
      pool.busy_.store(false, std::memory_order_release);
    }
  } release{*this, inside_pool, inside_worker};
  inside_pool = this;
  inside_worker = 0;
  if (parts == 1 || threads_.empty()) {
    for (std::int64_t part = 0; part < parts; ++part) call(context, part, 0);
    return;
  }
  parts_ = parts;
  call_ = call;
  context_ = context;
  failure_ = nullptr;
  finished_.store(0, std::memory_order_relaxed);
  const std::uint64_t job = (tickets_.load(std::memory_order_relaxed) >> 32) + 1;
  tickets_.store((job << 32) | static_cast<std::uint64_t>(parts));
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  while (take_part(0)) {
  }
  const auto all_finished = [&] { return finished_.load(std::memory_order_acquire) == parts; };
  if (!spin_until(all_finished)) {
    for (std::int64_t seen = finished_.load(); seen != parts; seen = finished_.load()) finished_.wait(seen);
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace engine
