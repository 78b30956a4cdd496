// step_mailbox.h: what all requests of a generator have to tell after a step, as one message: a step costs JavaScript one wake-up, however many
// sequences advanced in it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "js_queue.h"

namespace engine::addon {

class StepMailbox {
 public:
  struct Letter {
    virtual ~Letter() = default;
    virtual void deliver(Napi::Env env) = 0;  // JavaScript thread
  };

  explicit StepMailbox(std::shared_ptr<JsQueue> queue) : queue_(std::move(queue)) {}

  void put(std::shared_ptr<Letter> letter) {
    const std::lock_guard lock(mutex_);
    letters_.push_back(std::move(letter));
  }
  void send() {
    std::vector<std::shared_ptr<Letter>> letters;
    {
      const std::lock_guard lock(mutex_);
      letters.swap(letters_);
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
  std::vector<std::shared_ptr<Letter>> letters_;
};

}  // namespace engine::addon
