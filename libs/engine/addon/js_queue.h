// js_queue.h: messages from engine threads to the JavaScript thread. One doorbell rings for all that wait: a burst costs one wake-up.
#pragma once

#include <napi.h>

#include <functional>
#include <mutex>
#include <vector>

namespace engine::addon {

class JsQueue {
 public:
  // A message runs on the JavaScript thread. It holds native data only, since it is destroyed wherever the queue is closed.
  using Message = std::function<void(Napi::Env)>;

  explicit JsQueue(Napi::Env env);
  // From any thread. Dropped after close().
  void post(Message message);
  // JavaScript thread: nothing is delivered any more.
  void close();
  // JavaScript thread: whether pending work keeps the process alive.
  void hold(Napi::Env env) { doorbell_.Ref(env); }
  void let_go(Napi::Env env) { doorbell_.Unref(env); }

 private:
  static void drain(Napi::Env env, Napi::Function, JsQueue* self, void*);
  using Doorbell = Napi::TypedThreadSafeFunction<JsQueue, void, drain>;

  Doorbell doorbell_;
  std::mutex mutex_;
  std::vector<Message> messages_;
  bool rung_ = false, open_ = true;
};

}  // namespace engine::addon
