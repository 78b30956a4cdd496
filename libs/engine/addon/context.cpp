#include "context.h"

#include <new>
#include <stdexcept>

namespace engine::addon {

Napi::Error js_error(Napi::Env env, Code code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, std::string(code_name(code))));
  return error;
}

Fault current_fault() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return {error.code(), error.message()};
  } catch (const std::bad_alloc&) {
    return {Code::oom, "memory ran out; use a smaller model, fewer tokens at once or gradient checkpointing"};
  } catch (const std::length_error&) {
    return {Code::oom, "an array would be larger than memory can be"};
  } catch (const std::exception& error) {
    return {Code::internal, error.what()};
  } catch (...) {
    return {Code::internal, "an unknown exception"};
  }
}

Context::Context(Napi::Env env) : queue_(std::make_shared<JsQueue>(env)) {
  // Hooks run in reverse order, so this one comes before the queue's own: nobody rings a doorbell that is gone.
  napi_add_env_cleanup_hook(env, [](void* self) { static_cast<Context*>(self)->shut_down(); }, this);
}

Context::~Context() {
  // References cannot be deleted once their environment has gone; it frees them itself.
  for (auto& [id, callback] : callbacks_) callback.function.SuppressDestruct();
}

Context::Ticket Context::open_promise(Napi::Env env) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  const std::uint64_t id = next_id_++;
  promises_.emplace(id, deferred);
  hold(env);
  return {id, deferred.Promise()};
}

void Context::resolve(Napi::Env env, std::uint64_t ticket, Napi::Value value) {
  const auto found = promises_.find(ticket);
  if (found == promises_.end()) return;
  found->second.Resolve(value);
  promises_.erase(found);
  let_go(env);
}

void Context::reject(Napi::Env env, std::uint64_t ticket, const Fault& fault) {
  const auto found = promises_.find(ticket);
  if (found == promises_.end()) return;
  found->second.Reject(js_error(env, fault.code, fault.message).Value());
  promises_.erase(found);
  let_go(env);
}

std::uint64_t Context::keep_callback(Napi::Env env, Napi::Function function, bool holding) {
  const std::uint64_t id = next_id_++;
  callbacks_.emplace(id, Callback{Napi::Persistent(function), holding});
  if (holding) hold(env);
  return id;
}

Napi::Function Context::callback(std::uint64_t id) {
  const auto found = callbacks_.find(id);
  return found == callbacks_.end() ? Napi::Function() : found->second.function.Value();
}

void Context::drop_callback(Napi::Env env, std::uint64_t id) {
  const auto found = callbacks_.find(id);
  if (found == callbacks_.end()) return;
  const bool holding = found->second.holding;
  callbacks_.erase(found);
  if (holding) let_go(env);
}

void Context::watch(const std::shared_ptr<CancelFlag>& flag) {
  std::erase_if(flags_, [](const std::weak_ptr<CancelFlag>& old) { return old.expired(); });
  flags_.push_back(flag);
}

void Context::at_shut_down(const std::weak_ptr<void>& owner, std::function<void()> action) {
  std::erase_if(shut_down_actions_, [](const ShutDownAction& old) { return old.owner.expired(); });
  shut_down_actions_.push_back({owner, std::move(action)});
}

void Context::hold(Napi::Env env) {
  if (holds_++ == 0) queue_->hold(env);
}
void Context::let_go(Napi::Env env) {
  if (--holds_ == 0) queue_->let_go(env);
}

void Context::shut_down() {
  if (down_) return;
  down_ = true;
  for (const auto& weak : flags_)
    if (const auto flag = weak.lock()) flag->requested = true;
  for (const ShutDownAction& each : shut_down_actions_) each.action();
  threads_->join_all();
  queue_->close();
}

}  // namespace engine::addon
