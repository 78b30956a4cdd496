// step_mailbox.h: what all requests of a generator have to tell after a step, as one message: a step costs JavaScript one wake-up, however many
// sequences advanced in it. What may wait goes along with what of other requests waits too, so that several steps cost one wake-up.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "js_queue.h"

namespace engine::addon {

class StepMailbox {
 public:
  using Clock = std::chrono::steady_clock;

  struct Letter {
    virtual ~Letter() = default;
    virtual void deliver(Napi::Env env) = 0;  // JavaScript thread; may find nothing to tell
  };

  explicit StepMailbox(std::shared_ptr<JsQueue> queue) : queue_(std::move(queue)) {}

  // Goes with the next send().
  void put(std::shared_ptr<Letter> letter) {
    const std::lock_guard lock(mutex_);
    urgent_.push_back(std::move(letter));
  }
  // Goes with the first send() that comes `wait` or more after the last one that took all.
  void put(std::shared_ptr<Letter> letter, Clock::duration wait) {
    const std::lock_guard lock(mutex_);
    wait_ = waiting_.empty() ? wait : std::min(wait_, wait);
    waiting_.push_back(std::move(letter));
  }
  // After each step, which bounds how much longer than `wait` anything lies here.
  void send() {
    std::vector<std::shared_ptr<Letter>> letters;
    {
      const std::lock_guard lock(mutex_);
      letters.swap(urgent_);
      if (const auto now = Clock::now(); !waiting_.empty() && now - taken_ >= wait_) {
        letters.insert(letters.end(), std::make_move_iterator(waiting_.begin()), std::make_move_iterator(waiting_.end()));
        waiting_.clear();
        taken_ = now;
      }
    }
    if (letters.empty()) return;
    queue_->post([letters = std::move(letters)](Napi::Env env) {
      std::optional<Napi::Error> thrown;  // by a callback: it must not cost the other letters their delivery
      for (const auto& letter : letters) {
        const Napi::HandleScope scope(env);
        try {
          letter->deliver(env);
        } catch (const Napi::Error& error) {
          if (!thrown) thrown = error;
        }
      }
      if (thrown) throw *thrown;
    });
  }

 private:
  std::shared_ptr<JsQueue> queue_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Letter>> urgent_, waiting_;
  Clock::duration wait_{};
  Clock::time_point taken_{};
};

}  // namespace engine::addon
