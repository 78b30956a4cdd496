#include "handles.h"

namespace engine::addon {
namespace {

constexpr napi_type_tag kHandleTag = {0x6d65646d65736801u, 0x656e67696e650001u};
constexpr napi_type_tag kCancelTag = {0x6d65646d65736802u, 0x656e67696e650002u};

bool has_tag(Napi::Value value, const napi_type_tag& tag) {
  bool matches = false;
  return value.IsExternal() && napi_check_object_type_tag(value.Env(), value, &tag, &matches) == napi_ok && matches;
}

// Frees the remains in order once the last strand has let go of it, then calls `done`.
class Burial {
 public:
  Burial(std::vector<std::shared_ptr<const void>> objects, std::function<void()> done) : objects_(std::move(objects)), done_(std::move(done)) {}
  ~Burial() {
    for (auto& object : objects_) object.reset();
    if (done_) done_();
  }
  Burial(const Burial&) = delete;
  Burial& operator=(const Burial&) = delete;

 private:
  std::vector<std::shared_ptr<const void>> objects_;
  std::function<void()> done_;
};

void bury(std::vector<Handle::Remains> remains, const std::shared_ptr<Threads>& threads, std::function<void()> done) {
  std::vector<std::shared_ptr<const void>> objects;
  for (Handle::Remains& each : remains) objects.push_back(std::move(each.object));
  auto burial = std::make_shared<Burial>(std::move(objects), std::move(done));
  try {
    // Each strand runs this after the jobs that may use the object; the last to finish frees everything, on its thread.
    for (Handle::Remains& each : remains) each.strand->post([burial] {});
    threads->start([burial = std::move(burial)]() mutable { burial.reset(); });
  } catch (const Error&) {
    // The environment is going down and its threads have ended: `burial` is freed here.
  }
}

}  // namespace

void Handle::close(std::vector<Remains>& remains) {
  closed_ = true;
  for (const auto& weak : dependents_)
    if (const auto dependent = weak.lock(); dependent && !dependent->closed()) dependent->close(remains);
  for (const auto& weak : work_)
    if (const auto flag = weak.lock()) flag->requested = true;
  remains.push_back({take(), strand_});
}

void Handle::abandon(std::vector<Remains>& remains) {
  closed_ = true;
  remains.push_back({take(), strand_});
}

Napi::Value wrap_handle(Napi::Env env, std::shared_ptr<Handle> handle) {
  const auto value = Napi::External<std::shared_ptr<Handle>>::New(env, new std::shared_ptr<Handle>(std::move(handle)), [](Napi::Env, std::shared_ptr<Handle>* box) {
    const std::unique_ptr<std::shared_ptr<Handle>> owned(box);
    Handle& forgotten = **owned;
    if (forgotten.closed()) return;
    std::vector<Handle::Remains> remains;
    forgotten.abandon(remains);
    bury(std::move(remains), forgotten.threads(), {});
  });
  napi_type_tag_object(env, value, &kHandleTag);
  return value;
}

std::shared_ptr<Handle> any_handle_of(Napi::Value value, const char* name) {
  require(has_tag(value, kHandleTag), name, " is not a handle of the engine");
  return *value.As<Napi::External<std::shared_ptr<Handle>>>().Data();
}

Napi::Value create_cancel(const Napi::CallbackInfo& info) {
  const auto token = Napi::External<std::shared_ptr<CancelFlag>>::New(info.Env(), new std::shared_ptr<CancelFlag>(std::make_shared<CancelFlag>()),
                                                                      [](Napi::Env, std::shared_ptr<CancelFlag>* box) { delete box; });
  napi_type_tag_object(info.Env(), token, &kCancelTag);
  return token;
}

Napi::Value cancel(const Napi::CallbackInfo& info) {
  require(has_tag(info[0], kCancelTag), "the cancel token is not one of the engine");
  (*info[0].As<Napi::External<std::shared_ptr<CancelFlag>>>().Data())->requested = true;
  return info.Env().Undefined();
}

std::shared_ptr<CancelFlag> cancel_flag(Napi::Value token, std::initializer_list<Handle*> handles) {
  std::shared_ptr<CancelFlag> flag;
  if (token.IsNull() || token.IsUndefined()) {
    flag = std::make_shared<CancelFlag>();
  } else {
    require(has_tag(token, kCancelTag), "the cancel token is not one of the engine");
    flag = *token.As<Napi::External<std::shared_ptr<CancelFlag>>>().Data();
  }
  Context::of(token.Env()).watch(flag);
  for (Handle* handle : handles)
    if (handle != nullptr) handle->add_work(flag);
  return flag;
}

Napi::Value close_handle(const Napi::CallbackInfo& info) {
  const auto handle = any_handle_of(info[0], "handle");
  require(!handle->closed(), "the ", handle->what(), " is already closed");
  Context& context = Context::of(info.Env());
  const auto ticket = context.open_promise(info.Env());
  std::vector<Handle::Remains> remains;
  handle->close(remains);
  bury(std::move(remains), context.threads(), [queue = context.queue(), id = ticket.id] {
    queue->post([id](Napi::Env env) { Context::of(env).resolve(env, id, env.Undefined()); });
  });
  return ticket.promise;
}

}  // namespace engine::addon
