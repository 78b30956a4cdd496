#include "model.h"

#include "arguments.h"
#include "context.h"
#include "convert.h"
#include "model_handle.h"
#include "model/lora.h"
#include "train/backend.h"

namespace engine::addon {
namespace {

using AdapterHandle = TypedHandle<const LoraAdapter>;

// Throws unsupported for a GPU that is not there: better now than after the base was read.
DeviceChoice read_device(Napi::Value value) {
  const DeviceChoice device = parse_device(read_string(value, "device"));
  if (device.kind == DeviceKind::cuda) require_cuda_device(device.index);
  return device;
}

// score and logits differ only in the method.
template <class Compute>
Napi::Value run_tokens(const Napi::CallbackInfo& info, Compute compute) {
  const auto model = handle_of<Model>(info[0], "model");
  auto tokens = read_uint32s(info[1], "tokens");
  const auto adapter = is_absent(info[2]) ? nullptr : handle_of<const LoraAdapter>(info[2], "adapter");
  const auto flag = cancel_flag(info[3], {model.get(), adapter.get()});
  return promise_of(
      info.Env(), on_strand(model->strand()),
      [object = model->object(), tokens = std::move(tokens), lora = adapter ? adapter->object() : nullptr, flag, compute] {
        check_cancelled(flag.get());
        return compute(*object, tokens, lora.get(), flag.get());
      },
      [](Napi::Env env, std::vector<float>& values) { return adopt_floats(env, std::move(values)); });
}

}  // namespace

Napi::Value to_js(Napi::Env env, const ModelInfo& info) {
  auto object = Napi::Object::New(env);
  object.Set("architecture", to_js(env, info.architecture));
  object.Set("modelType", to_js(env, info.model_type));
  object.Set("layers", to_js(env, info.layers));
  object.Set("hiddenSize", to_js(env, info.hidden_size));
  object.Set("vocabSize", to_js(env, info.vocab_size));
  object.Set("parameterCount", to_js(env, info.parameter_count));
  object.Set("contextLength", to_js(env, info.context_length));
  object.Set("tied", to_js(env, info.tied));
  object.Set("storedDtype", to_js(env, std::string(dtype_name(info.stored_dtype))));
  object.Set("quantization", to_js(env, std::string(info.nf4 ? "nf4" : "none")));
  object.Set("doubleQuant", to_js(env, info.double_quant));
  object.Set("weightBytes", to_js(env, info.weight_bytes));
  object.Set("targetModules", to_js(env, info.target_modules));
  return object;
}

Napi::Value list_devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto devices = Napi::Array::New(env);
  for (const DeviceInfo& found : engine::list_devices()) {
    auto device = Napi::Object::New(env);
    device.Set("kind", to_js(env, std::string(device_kind_name(found.kind))));
    device.Set("index", to_js(env, std::int64_t{found.index}));
    device.Set("name", to_js(env, found.name));
    device.Set("isa", to_js(env, found.isa));
    device.Set("threads", to_js(env, found.threads));
    device.Set("memoryBytes", to_js(env, found.memory_bytes));
    devices.Set(devices.Length(), device);
  }
  return devices;
}

Napi::Value used_device_memory(const Napi::CallbackInfo& info) {
  const int index = static_cast<int>(read_integer(info[0], "index", 0, 1023));
  require_cuda_device(index);
  return promise_of(
      info.Env(), on_own_thread(info.Env()), [index] { return cuda_backend().backend->used_bytes(index); },
      [](Napi::Env env, std::int64_t& bytes) { return to_js(env, bytes); });
}

Napi::Value load_model(const Napi::CallbackInfo& info) {
  const std::string dir = read_path(info[0], "modelDir");
  const std::string quantize = read_string(info[1], "quantize");
  const std::string compute = read_string(info[2], "compute");
  require(quantize == "none" || quantize == "nf4", "quantize is \"", quantize.substr(0, 40), "\"; use none or nf4");
  require(compute == "f32" || compute == "bf16", "compute is \"", compute.substr(0, 40), "\"; use f32 or bf16");
  LoadOptions options;
  options.quantize = quantize == "nf4" ? QuantizeOnLoad::nf4 : QuantizeOnLoad::none;
  options.compute = compute == "f32" ? Compute::f32 : Compute::bf16;
  options.threads = static_cast<int>(read_integer(info[3], "threads", 0, 1024));
  const DeviceChoice device = read_device(info[4]);
  const auto flag = cancel_flag(info[5], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [dir, options, flag]() mutable {
        options.cancel = flag.get();
        return std::make_shared<Model>(dir, options);
      },
      [device](Napi::Env env, std::shared_ptr<Model>& model) -> Napi::Value {
        auto object = Napi::Object::New(env);
        object.Set("info", to_js(env, model->info()));
        object.Set("residentBytes", to_js(env, model->resident_bytes()));
        object.Set("handle", wrap_handle(env, std::make_shared<ModelHandle>("model", Context::of(env).threads(), std::move(model), device)));
        return object;
      });
}

Napi::Value load_adapter(const Napi::CallbackInfo& info) {
  const auto model = handle_of<Model>(info[0], "model");
  const std::string dir = read_path(info[1], "dir");
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [object = model->object(), dir] { return std::shared_ptr<const LoraAdapter>(std::make_shared<LoraAdapter>(object->load_adapter(dir))); },
      [model](Napi::Env env, std::shared_ptr<const LoraAdapter>& adapter) -> Napi::Value {
        require(!model->closed(), "the model was closed while the adapter was read");
        const LoraConfig& config = adapter->config();
        auto object = Napi::Object::New(env);
        object.Set("rank", to_js(env, config.rank));
        object.Set("alpha", to_js(env, config.alpha));
        object.Set("dropout", to_js(env, config.dropout));
        object.Set("rslora", to_js(env, config.rslora));
        object.Set("dora", to_js(env, config.dora));
        object.Set("targetModules", to_js(env, config.target_modules));
        object.Set("layers", to_js(env, config.layers));
        object.Set("modulesToSave", to_js(env, config.modules_to_save));
        object.Set("parameterCount", to_js(env, adapter->size()));
        const auto handle = std::make_shared<AdapterHandle>("adapter", Context::of(env).threads(), std::move(adapter));
        model->add_dependent(handle);
        object.Set("handle", wrap_handle(env, handle));
        return object;
      });
}

Napi::Value score(const Napi::CallbackInfo& info) {
  return run_tokens(info, [](Model& model, std::span<const std::uint32_t> tokens, const LoraAdapter* adapter, const CancelFlag* cancel) {
    return model.score(tokens, adapter, cancel);
  });
}

Napi::Value logits(const Napi::CallbackInfo& info) {
  return run_tokens(info, [](Model& model, std::span<const std::uint32_t> tokens, const LoraAdapter* adapter, const CancelFlag* cancel) {
    return model.logits(tokens, adapter, cancel);
  });
}

}  // namespace engine::addon
