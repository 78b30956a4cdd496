#include "js_queue.h"

#include <optional>

namespace engine::addon {

JsQueue::JsQueue(Napi::Env env) {
  doorbell_ = Doorbell::New(env, "medmesh engine", 0, 1, this);
  doorbell_.Unref(env);
}

void JsQueue::post(Message message) {
  const std::lock_guard lock(mutex_);
  if (!open_) return;
  messages_.push_back(std::move(message));
  if (rung_) return;
  rung_ = doorbell_.NonBlockingCall() == napi_ok;
  if (!rung_) open_ = false;  // the environment is closing: the doorbell must not be touched again
}

void JsQueue::close() {
  const std::lock_guard lock(mutex_);
  if (open_) doorbell_.Release();
  open_ = false;
  messages_.clear();
}

void JsQueue::drain(Napi::Env env, Napi::Function, JsQueue* self, void*) {
  if (static_cast<napi_env>(env) == nullptr) return;  // delivered while the environment goes down
  std::vector<Message> messages;
  {
    const std::lock_guard lock(self->mutex_);
    messages.swap(self->messages_);
    self->rung_ = false;
  }
  std::optional<Napi::Error> thrown;  // by a callback: it must not cost the other messages their delivery
  for (Message& message : messages) {
    const Napi::HandleScope scope(env);
    try {
      message(env);
    } catch (const Napi::Error& error) {
      if (!thrown) thrown = error;
    }
  }
  if (thrown) throw *thrown;
}

}  // namespace engine::addon
