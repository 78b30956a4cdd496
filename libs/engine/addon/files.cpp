#include "files.h"

#include <atomic>

#include "arguments.h"
#include "context.h"
#include "convert.h"
#include "export/gguf_export.h"
#include "export/gguf_verify.h"
#include "formats/merge_adapter.h"
#include "formats/quantize_model.h"
#include "formats/safetensors.h"
#include "handles.h"
#include "model/model.h"

namespace engine::addon {
namespace {

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
          tensor.Set("shape", to_js(env, view.shape));
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
  const std::vector<std::string> skip_modules = read_strings(info[3], "skipModules");
  const IfExists if_exists = read_boolean(info[4], "replace") ? IfExists::replace : IfExists::refuse;
  const auto reporter = std::make_shared<ProgressReporter>(info.Env(), info[5]);
  const auto flag = cancel_flag(info[6], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        inspect_model(model_dir);  // a model this engine cannot run is not worth quantizing: say so first
        OwnExec own;
        return quantize_model(own.exec, model_dir, out_dir,
                              {.double_quant = double_quant,
                               .skip_modules = skip_modules,
                               .if_exists = if_exists,
                               .progress = reporter->function(reporter),
                               .cancel = flag.get()});
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
  const IfExists if_exists = read_boolean(info[3], "replace") ? IfExists::replace : IfExists::refuse;
  const auto reporter = std::make_shared<ProgressReporter>(info.Env(), info[4]);
  const auto flag = cancel_flag(info[5], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        inspect_model(model_dir);
        OwnExec own;
        return merge_adapter(own.exec, model_dir, adapter_dir, out_dir, {.if_exists = if_exists, .progress = reporter->function(reporter), .cancel = flag.get()});
      },
      [](Napi::Env env, MergedModel& result) -> Napi::Value {
        auto object = Napi::Object::New(env);
        object.Set("weightBytes", to_js(env, result.weight_bytes));
        object.Set("base", to_js(env, result.base));
        return object;
      });
}

namespace {

Napi::Object parity_to_js(Napi::Env env, const GgufParity& parity) {
  auto object = Napi::Object::New(env);
  object.Set("weightMean", to_js(env, parity.weight_mean));
  object.Set("weightMax", to_js(env, parity.weight_max));
  object.Set("probeTokens", to_js(env, parity.probe_tokens));
  object.Set("logprobMean", to_js(env, parity.logprob_mean));
  object.Set("logprobMax", to_js(env, parity.logprob_max));
  object.Set("klMean", to_js(env, parity.kl_mean));
  object.Set("top1Agreement", to_js(env, parity.top1_agreement));
  return object;
}

}  // namespace

Napi::Value export_gguf_file(const Napi::CallbackInfo& info) {
  const std::string model_dir = read_path(info[0], "modelDir"), out_path = read_path(info[2], "outPath");
  const std::optional<std::string> adapter_dir = is_absent(info[1]) ? std::nullopt : std::optional(read_path(info[1], "adapterDir"));
  const GgufRecipe recipe = recipe_from_name(read_string(info[3], "type"));
  const std::string name = read_string(info[4], "name");
  const IfExists if_exists = read_boolean(info[5], "replace") ? IfExists::replace : IfExists::refuse;
  const auto reporter = std::make_shared<ProgressReporter>(info.Env(), info[6]);
  const auto flag = cancel_flag(info[7], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        OwnExec own;
        return export_gguf(own.exec, model_dir, out_path,
                           {.recipe = recipe,
                            .adapter_dir = adapter_dir,
                            .name = name,
                            .if_exists = if_exists,
                            .progress = reporter->function(reporter),
                            .cancel = flag.get()});
      },
      [](Napi::Env env, ExportedGguf& result) -> Napi::Value {
        auto object = Napi::Object::New(env);
        object.Set("fileBytes", to_js(env, result.file_bytes));
        object.Set("tensors", to_js(env, result.tensors));
        object.Set("architecture", to_js(env, result.architecture));
        object.Set("tokenizer", to_js(env, result.tokenizer));
        object.Set("contextLength", to_js(env, result.context));
        object.Set("base", to_js(env, result.base));
        object.Set("parity", parity_to_js(env, result.parity));
        return object;
      });
}

Napi::Value verify_gguf_file(const Napi::CallbackInfo& info) {
  const std::string model_dir = read_path(info[0], "modelDir"), path = read_path(info[2], "path");
  const std::optional<std::filesystem::path> adapter_dir = is_absent(info[1]) ? std::nullopt : std::optional<std::filesystem::path>(read_path(info[1], "adapterDir"));
  const std::vector<std::vector<std::uint32_t>> sequences = read_sequences(info[3]);
  const auto flag = cancel_flag(info[4], {});
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [=] {
        OwnExec own;
        return verify_gguf(own.exec, model_dir, adapter_dir, path, sequences, flag.get());
      },
      [](Napi::Env env, VerifiedGguf& result) -> Napi::Value {
        auto logprobs = Napi::Array::New(env, result.logprobs.size());
        for (std::size_t i = 0; i < result.logprobs.size(); ++i) logprobs.Set(static_cast<std::uint32_t>(i), adopt_floats(env, std::move(result.logprobs[i])));
        auto object = Napi::Object::New(env);
        object.Set("recorded", result.recorded ? parity_to_js(env, *result.recorded).As<Napi::Value>() : env.Null());
        object.Set("measured", parity_to_js(env, result.measured));
        object.Set("logprobs", logprobs);
        return object;
      });
}

}  // namespace engine::addon
