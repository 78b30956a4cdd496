// threads.h: the engine's own threads, so that long work never occupies Node's pool.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

namespace engine::addon {

// Starts threads and knows all of them, so that none outlives the environment whose code it runs.
class Threads {
 public:
  ~Threads() { join_all(); }
  // Runs `body`, which must not throw, on a new thread. Throws oom when the system gives none.
  void start(std::function<void()> body);
  // Waits for every thread. After this start() throws.
  void join_all();

 private:
  struct Entry {
    std::thread thread;
    bool finished = false;
  };
  std::mutex mutex_;
  std::list<Entry> entries_;
  bool closed_ = false;
};

// Runs jobs one after the other, on a thread that exists only while there are jobs.
class Strand : public std::enable_shared_from_this<Strand> {
 public:
  explicit Strand(std::shared_ptr<Threads> threads) : threads_(std::move(threads)) {}
  // `job` must not throw. It is destroyed before the next one starts.
  void post(std::function<void()> job);

 private:
  void drain();

  std::shared_ptr<Threads> threads_;
  std::mutex mutex_;
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;
};

}  // namespace engine::addon
