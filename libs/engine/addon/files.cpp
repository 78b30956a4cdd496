#include "files.h"

#include <atomic>
#include <limits>

#include "arguments.h"
#include "context.h"
#include "convert.h"
#include "formats/merge_adapter.h"
#include "formats/quantize_model.h"
#include "formats/safetensors.h"
#include "handles.h"
#include "model/model.h"

namespace engine::addon {
namespace {

Napi::Array shape_to_js(Napi::Env env, const std::vector<std::int64_t>& shape) {
  auto array = Napi::Array::New(env, shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) array.Set(static_cast<std::uint32_t>(i), to_js(env, shape[i]));
  return array;
}

// Calls a JavaScript progress function from engine threads. A report that JavaScript has not taken yet is replaced by the next one.
class ProgressReporter {
 public:
  ProgressReporter(Napi::Env env, Napi::Value function) : queue_(Context::of(env).queue()) {
    if (is_absent(function)) return;
    require(function.IsFunction(), "onProgress is not a function");
    callback_ = Context::of(env).keep_callback(env, function.As<Napi::Function>(), false);
  }
  ProgressReporter(const ProgressReporter&) = delete;
  ProgressReporter& operator=(const ProgressReporter&) = delete;
  ~ProgressReporter() {
    if (callback_ != 0) queue_->post([id = callback_](Napi::Env env) { Context::of(env).drop_callback(env, id); });
  }

  ProgressFunction function(std::shared_ptr<ProgressReporter> self) const {
    if (callback_ == 0) return {};
    return [self](std::int64_t done, std::int64_t total) { self->report(done, total); };
  }

 private:
  struct Latest {
    std::atomic<std::int64_t> done{0}, total{0};
    std::atomic<bool> waiting{false};
  };
  void report(std::int64_t done, std::int64_t total) {
    latest_->done = done;
    latest_->total = total;
    if (latest_->waiting.exchange(true)) return;
    queue_->post([latest = latest_, id = callback_](Napi::Env env) {
      latest->waiting = false;
      const Napi::Function function = Context::of(env).callback(id);
      if (function.IsEmpty()) return;
      auto progress = Napi::Object::New(env);
      progress.Set("done", to_js(env, latest->done.load()));
      progress.Set("total", to_js(env, latest->total.load()));
      try {
        function.Call({progress});
      } catch (const Napi::Error&) {
        // A listener's own exception is not the work's: the work goes on. The TypeScript face reports it.
      }
    });
  }

  std::shared_ptr<JsQueue> queue_;
  std::uint64_t callback_ = 0;
  std::shared_ptr<Latest> latest_ = std::make_shared<Latest>();
};

// An Exec with threads of its own, for work on files that belongs to no loaded model.
struct OwnExec {
  ThreadPool pool{available_threads()};
  Exec exec = make_exec(pool, Compute::f32);
};

struct OwnedTensor {
  TensorSpec spec;
  std::vector<std::uint8_t> data;
};

Dtype writable_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::u8, Dtype::u32, Dtype::u64, Dtype::i64, Dtype::f32})
    if (dtype_name(dtype) == name) return dtype;
  fail(Code::invalid, "the dtype is \"", name.substr(0, 40), "\"; use u8, u32, u64, i64 or f32");
}

OwnedTensor read_tensor_argument(Napi::Value value) {
  const auto object = read_object(value, "tensor");
  OwnedTensor tensor;
  tensor.spec.name = read_string(object.Get("name"), "tensor.name");
  tensor.spec.dtype = writable_dtype(read_string(object.Get("dtype"), "tensor.dtype"));
  const Napi::Value shape = object.Get("shape");
  require(shape.IsArray(), "tensor.shape is not an array");
  for (std::uint32_t i = 0; i < shape.As<Napi::Array>().Length(); ++i)
    tensor.spec.shape.push_back(read_integer(shape.As<Napi::Array>().Get(i), "tensor.shape", 0, std::int64_t{1} << 53));
  tensor.data = read_bytes(object.Get("data"), "tensor.data");
  std::int64_t bytes = 0;
  require(!__builtin_mul_overflow(element_count(tensor.spec.shape), dtype_size(tensor.spec.dtype), &bytes) && bytes == static_cast<std::int64_t>(tensor.data.size()),
          "tensor \"", tensor.spec.name, "\" has ", tensor.data.size(), " bytes of data, which its shape and dtype do not");
  return tensor;
}

}  // namespace

Napi::Value inspect_safetensors(const Napi::CallbackInfo& info) {
  const std::string path = read_path(info[0], "path");
  struct Result {
    Metadata metadata;
    std::vector<TensorView> tensors;  // names, shapes and places only; the file is closed
  };
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [path] {
        const SafetensorsFile file(path);
        return Result{file.metadata(), file.tensors()};
      },
      [](Napi::Env env, Result& result) -> Napi::Value {
        auto metadata = Napi::Object::New(env);
        for (const auto& [key, value] : result.metadata) metadata.Set(key, to_js(env, value));
        auto tensors = Napi::Array::New(env, result.tensors.size());
        for (std::size_t i = 0; i < result.tensors.size(); ++i) {
          const TensorView& view = result.tensors[i];
          auto tensor = Napi::Object::New(env);
          tensor.Set("name", to_js(env, view.name));
          tensor.Set("dtype", to_js(env, std::string(dtype_name(view.dtype))));
          tensor.Set("shape", shape_to_js(env, view.shape));
          tensor.Set("byteOffset", to_js(env, view.offset));
          tensor.Set("byteLength", to_js(env, view.bytes));
          tensors.Set(static_cast<std::uint32_t>(i), tensor);
        }
        auto object = Napi::Object::New(env);
        object.Set("metadata", metadata);
        object.Set("tensors", tensors);
        return object;
      });
}

Napi::Value inspect_model_dir(const Napi::CallbackInfo& info) {
  const std::string dir = read_path(info[0], "dir");
  return promise_of(
      info.Env(), on_own_thread(info.Env()), [dir] { return inspect_model(dir); }, [](Napi::Env env, ModelInfo& model) { return to_js(env, model); });
}

Napi::Value quantize_model_dir(const Napi::CallbackInfo& info) {
  const std::string model_dir = read_path(info[0], "modelDir"), out_dir = read_path(info[1], "outDir");
  const bool double_quant = read_boolean(info[2], "doubleQuant");
  const auto reporter = std::make_shared<ProgressReporter>(info.Env(), info[3]);
  const auto flag = cancel_flag(info[4], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        inspect_model(model_dir);  // a model this engine cannot run is not worth quantizing: say so first
        OwnExec own;
        return quantize_model(own.exec, model_dir, out_dir, {.double_quant = double_quant, .progress = reporter->function(reporter), .cancel = flag.get()});
      },
      [](Napi::Env env, QuantizedModel& result) -> Napi::Value {
        auto object = Napi::Object::New(env);
        object.Set("weightBytes", to_js(env, result.weight_bytes));
        object.Set("tensors", to_js(env, result.tensors));
        return object;
      });
}

Napi::Value merge_adapter_dir(const Napi::CallbackInfo& info) {
  const std::string model_dir = read_path(info[0], "modelDir"), adapter_dir = read_path(info[1], "adapterDir"), out_dir = read_path(info[2], "outDir");
  const auto reporter = std::make_shared<ProgressReporter>(info.Env(), info[3]);
  const auto flag = cancel_flag(info[4], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        inspect_model(model_dir);
        OwnExec own;
        return merge_adapter(own.exec, model_dir, adapter_dir, out_dir, {.progress = reporter->function(reporter), .cancel = flag.get()});
      },
      [](Napi::Env env, MergedModel& result) -> Napi::Value {
        auto object = Napi::Object::New(env);
        object.Set("weightBytes", to_js(env, result.weight_bytes));
        object.Set("base", to_js(env, result.base));
        return object;
      });
}

Napi::Value write_tensors(const Napi::CallbackInfo& info) {
  const std::string path = read_path(info[0], "path");
  require(info[1].IsArray(), "tensors is not an array");
  const auto list = info[1].As<Napi::Array>();
  std::vector<OwnedTensor> tensors;
  for (std::uint32_t i = 0; i < list.Length(); ++i) tensors.push_back(read_tensor_argument(list.Get(i)));
  Metadata metadata;
  const auto entries = read_object(info[2], "metadata");
  const Napi::Array keys = entries.GetPropertyNames();
  for (std::uint32_t i = 0; i < keys.Length(); ++i) {
    const std::string key = read_string(keys.Get(i), "a metadata key");
    metadata.emplace(key, read_string(entries.Get(key), "a metadata value"));
  }
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [path, tensors = std::move(tensors), metadata = std::move(metadata)] {
        std::vector<NamedTensor> named;
        for (const OwnedTensor& tensor : tensors) named.push_back({tensor.spec, tensor.data.data()});
        write_safetensors(path, named, metadata);
        return true;
      },
      [](Napi::Env env, bool&) -> Napi::Value { return env.Undefined(); });
}

Napi::Value read_tensors(const Napi::CallbackInfo& info) {
  const std::string path = read_path(info[0], "path");
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [path] {
        const SafetensorsFile file(path);
        std::vector<OwnedTensor> tensors;
        for (const TensorView& view : file.tensors())
          tensors.push_back({{view.name, view.dtype, view.shape}, std::vector<std::uint8_t>(view.data, view.data + view.bytes)});
        return tensors;
      },
      [](Napi::Env env, std::vector<OwnedTensor>& tensors) -> Napi::Value {
        auto array = Napi::Array::New(env, tensors.size());
        for (std::size_t i = 0; i < tensors.size(); ++i) {
          auto tensor = Napi::Object::New(env);
          tensor.Set("name", to_js(env, tensors[i].spec.name));
          tensor.Set("dtype", to_js(env, std::string(dtype_name(tensors[i].spec.dtype))));
          tensor.Set("shape", shape_to_js(env, tensors[i].spec.shape));
          tensor.Set("data", adopt_bytes(env, std::move(tensors[i].data)));
          array.Set(static_cast<std::uint32_t>(i), tensor);
        }
        return array;
      });
}

}  // namespace engine::addon
