// context.h: what the addon keeps for one JavaScript environment. Nothing here is shared by the process, so worker threads stay apart.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/cancel.h"
#include "core/error.h"
#include "js_queue.h"
#include "threads.h"

namespace engine::addon {

// A JavaScript Error with `code` and `message` of an engine Error.
Napi::Error js_error(Napi::Env env, Code code, const std::string& message);

// What went wrong, as plain data that may cross threads.
struct Fault {
  Code code = Code::internal;
  std::string message;
};
// The exception being handled, as a Fault. Call inside a catch block.
Fault current_fault() noexcept;

class Context {
 public:
  explicit Context(Napi::Env env);
  ~Context();
  static Context& of(Napi::Env env) { return *env.GetInstanceData<Context>(); }

  const std::shared_ptr<JsQueue>& queue() const noexcept { return queue_; }
  const std::shared_ptr<Threads>& threads() const noexcept { return threads_; }

  // A promise to be settled from any thread, by its ticket, through the queue. While one is open the process stays alive.
  struct Ticket {
    std::uint64_t id;
    Napi::Promise promise;
  };
  Ticket open_promise(Napi::Env env);
  void resolve(Napi::Env env, std::uint64_t ticket, Napi::Value value);
  void reject(Napi::Env env, std::uint64_t ticket, const Fault& fault);

  // A JavaScript function that engine threads call by its number, through the queue, until it is dropped. `holding` keeps the process alive.
  std::uint64_t keep_callback(Napi::Env env, Napi::Function function, bool holding);
  Napi::Function callback(std::uint64_t id);  // empty when dropped
  void drop_callback(Napi::Env env, std::uint64_t id);

  // The flag is set when the environment goes down, so that running work ends.
  void watch(const std::shared_ptr<CancelFlag>& flag);

  // Runs `action` when the environment goes down, unless `owner` has gone before.
  void at_shut_down(const std::weak_ptr<void>& owner, std::function<void()> action);

  // Environment teardown: stop all work, wait for it, deliver nothing more.
  void shut_down();

 private:
  struct Callback {
    Napi::FunctionReference function;
    bool holding = false;
  };
  void hold(Napi::Env env);
  void let_go(Napi::Env env);

  std::shared_ptr<JsQueue> queue_;
  std::shared_ptr<Threads> threads_ = std::make_shared<Threads>();
  std::unordered_map<std::uint64_t, Napi::Promise::Deferred> promises_;
  std::unordered_map<std::uint64_t, Callback> callbacks_;
  std::vector<std::weak_ptr<CancelFlag>> flags_;
  struct ShutDownAction {
    std::weak_ptr<void> owner;
    std::function<void()> action;
  };
  std::vector<ShutDownAction> shut_down_actions_;
  std::uint64_t next_id_ = 1;
  int holds_ = 0;
  bool down_ = false;
};

// Runs `work` by `start` (a Strand's post, or a thread of its own) and settles the returned promise with `convert` of its result.
// work() -> Result on an engine thread; convert(env, Result&) -> Napi::Value on the JavaScript thread.
template <class Work, class Convert>
Napi::Value promise_of(Napi::Env env, const std::function<void(std::function<void()>)>& start, Work work, Convert convert) {
  using Result = decltype(work());
  Context& context = Context::of(env);
  const auto ticket = context.open_promise(env);
  auto job = std::make_shared<Work>(std::move(work));
  try {
    start([queue = context.queue(), id = ticket.id, job, convert]() mutable {
      try {
        auto result = std::make_shared<Result>((*job)());
        job.reset();
        queue->post([id, result, convert](Napi::Env on) mutable {
          try {
            Context::of(on).resolve(on, id, convert(on, *result));
          } catch (...) {
            Context::of(on).reject(on, id, current_fault());
          }
        });
      } catch (...) {
        const Fault fault = current_fault();
        job.reset();
        queue->post([id, fault](Napi::Env on) { Context::of(on).reject(on, id, fault); });
      }
    });
  } catch (...) {
    context.reject(env, ticket.id, current_fault());
  }
  return ticket.promise;
}

// Starts on a thread of its own: for files, which wait for the disk.
inline std::function<void(std::function<void()>)> on_own_thread(Napi::Env env) {
  return [threads = Context::of(env).threads()](std::function<void()> body) { threads->start(std::move(body)); };
}
inline std::function<void(std::function<void()>)> on_strand(std::shared_ptr<Strand> strand) {
  return [strand = std::move(strand)](std::function<void()> body) { strand->post(std::move(body)); };
}

// Wraps an exported function: whatever it throws becomes a JavaScript exception with a code.
template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return Function(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    const Fault fault = current_fault();
    throw js_error(info.Env(), fault.code, fault.message);
  }
}

}  // namespace engine::addon
