// handles.h: engine objects held by JavaScript, as tagged externals. A handle is closed once; what is closed or forgotten is freed off the JavaScript
// thread, after the work that still uses it.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "context.h"

namespace engine::addon {

// JavaScript thread only, but for `object` of TypedHandle, whose copies keep it alive in running work.
class Handle {
 public:
  Handle(std::string what, const std::shared_ptr<Threads>& threads) : what_(std::move(what)), threads_(threads), strand_(std::make_shared<Strand>(threads)) {}
  virtual ~Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  const std::string& what() const noexcept { return what_; }  // "model", for messages
  bool closed() const noexcept { return closed_; }
  const std::shared_ptr<Strand>& strand() const noexcept { return strand_; }
  const std::shared_ptr<Threads>& threads() const noexcept { return threads_; }

  // Closing this handle closes that one too: a trainer cannot outlive its model.
  void add_dependent(const std::shared_ptr<Handle>& handle) {
    std::erase_if(dependents_, [](const std::weak_ptr<Handle>& old) { return old.expired(); });
    dependents_.push_back(handle);
  }
  // Work on this handle that closing it must cancel.
  void add_work(const std::shared_ptr<CancelFlag>& flag) {
    std::erase_if(work_, [](const std::weak_ptr<CancelFlag>& old) { return old.expired(); });
    work_.push_back(flag);
  }

  // Marks this handle and its dependents closed, cancels their work, and returns what to free, dependents first, each with the strand whose jobs
  // may still use it.
  struct Remains {
    std::shared_ptr<const void> object;
    std::shared_ptr<Strand> strand;
  };
  void close(std::vector<Remains>& remains);
  // The same for a handle nobody can reach any more: its running work and its dependents, which hold what they need, go on.
  void abandon(std::vector<Remains>& remains);

 protected:
  virtual std::shared_ptr<const void> take() = 0;

 private:
  std::string what_;
  std::shared_ptr<Threads> threads_;
  std::shared_ptr<Strand> strand_;
  std::vector<std::weak_ptr<Handle>> dependents_;
  std::vector<std::weak_ptr<CancelFlag>> work_;
  bool closed_ = false;
};

template <class T>
class TypedHandle : public Handle {
 public:
  TypedHandle(std::string what, const std::shared_ptr<Threads>& threads, std::shared_ptr<T> object) : Handle(std::move(what), threads), object_(std::move(object)) {}
  const std::shared_ptr<T>& object() const noexcept { return object_; }

 protected:
  std::shared_ptr<const void> take() override { return std::move(object_); }

 private:
  std::shared_ptr<T> object_;
};

// The JavaScript value for a handle, and back. handle_of throws invalid for anything else and for a closed handle.
Napi::Value wrap_handle(Napi::Env env, std::shared_ptr<Handle> handle);
std::shared_ptr<Handle> any_handle_of(Napi::Value value, const char* name);

template <class T>
std::shared_ptr<TypedHandle<T>> handle_of(Napi::Value value, const char* name) {
  auto typed = std::dynamic_pointer_cast<TypedHandle<T>>(any_handle_of(value, name));
  require(typed != nullptr, name, " is not a ", name);
  require(!typed->closed(), "the ", typed->what(), " is closed");
  return typed;
}

// Cancel tokens: JavaScript makes one for an AbortSignal, passes it to a call, and sets it when the signal fires.
Napi::Value create_cancel(const Napi::CallbackInfo& info);  // () -> token
Napi::Value cancel(const Napi::CallbackInfo& info);         // (token)
// The flag of a token, or a new one for null, watched by the context and by each handle.
std::shared_ptr<CancelFlag> cancel_flag(Napi::Value token, std::initializer_list<Handle*> handles);

Napi::Value close_handle(const Napi::CallbackInfo& info);  // (handle) -> promise, settled when its memory is free

}  // namespace engine::addon
