// model_handle.h: a loaded model and, once something was generated with it, the engine thread that generates.
#pragma once

#include "core/device.h"
#include "handles.h"
#include "infer/generator.h"
#include "model/model.h"
#include "step_mailbox.h"

namespace engine::addon {

class ModelHandle : public TypedHandle<Model> {
 public:
  ModelHandle(std::string what, const std::shared_ptr<Threads>& threads, std::shared_ptr<Model> object, const DeviceChoice& device)
      : TypedHandle<Model>(std::move(what), threads, std::move(object)), device_(device) {}

  const DeviceChoice& device() const noexcept { return device_; }  // where its trainers and its generator run

  // Made on first use: a cache for a model that only trains would be waste.
  static const std::shared_ptr<Generator>& generator_of(Napi::Env env, const std::shared_ptr<ModelHandle>& self);
  // One that was made beforehand. Throws invalid when there is one, or the model is closed.
  static void set_generator(Napi::Env env, const std::shared_ptr<ModelHandle>& self, std::shared_ptr<Generator> generator, std::shared_ptr<StepMailbox> mailbox);
  const std::shared_ptr<StepMailbox>& mailbox() const noexcept { return mailbox_; }        // made with the generator
  const std::shared_ptr<Generator>& generator() const noexcept { return generator_; }  // null before the first use

 protected:
  std::shared_ptr<const void> take() override;

 private:
  DeviceChoice device_;
  std::shared_ptr<StepMailbox> mailbox_;
  std::shared_ptr<Generator> generator_;
};

// Throws invalid for anything but an open model.
std::shared_ptr<ModelHandle> model_of(Napi::Value value);

}  // namespace engine::addon
