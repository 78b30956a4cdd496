#include "threads.h"

#include <system_error>

#include "core/error.h"

namespace engine::addon {

void Threads::start(std::function<void()> body) {
  const std::lock_guard lock(mutex_);
  require(Code::cancelled, !closed_, "the environment is shutting down");
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (entry->finished) entry->thread.join();
    entry = entry->finished ? entries_.erase(entry) : std::next(entry);
  }
  Entry& entry = entries_.emplace_back();
  try {
    entry.thread = std::thread([this, &entry, run = std::move(body)]() mutable {
      run();
      run = nullptr;  // what the job holds is released here, not after the join
      const std::lock_guard done(mutex_);
      entry.finished = true;
    });
  } catch (const std::system_error& error) {
    entries_.pop_back();
    fail(Code::oom, "the system gives no further thread: ", error.what());
  }
}

void Threads::join_all() {
  std::list<Entry> rest;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    rest.splice(rest.end(), entries_);  // nodes stay where they are: running threads hold references to them
  }
  for (Entry& entry : rest) entry.thread.join();
}

void Strand::post(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  if (running_) return;
  try {
    threads_->start([self = shared_from_this()] { self->drain(); });
  } catch (...) {
    jobs_.pop_back();
    throw;
  }
  running_ = true;
}

void Strand::drain() {
  while (true) {
    std::function<void()> job;
    {
      const std::lock_guard lock(mutex_);
      if (jobs_.empty()) {
        running_ = false;
        return;
      }
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace engine::addon
