#include "tensors.h"

#include "arguments.h"
#include "context.h"
#include "convert.h"
#include "core/staged_output.h"
#include "formats/safetensors.h"
#include "handles.h"

namespace engine::addon {
namespace {

struct OwnedTensor {
  TensorSpec spec;
  std::vector<std::uint8_t> data;
};

// A file under its temporary name, and who fills it.
struct GrowingFile {
  StagedFile staged;
  SafetensorsWriter writer;

  GrowingFile(const std::string& path, std::vector<TensorSpec> specs, Metadata metadata)
      : staged(path), writer(staged.path(), std::move(specs), std::move(metadata)) {}
};
using GrowingFileHandle = TypedHandle<GrowingFile>;

Dtype writable_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::u8, Dtype::u32, Dtype::u64, Dtype::i64, Dtype::f32})
    if (dtype_name(dtype) == name) return dtype;
  fail(Code::invalid, "the dtype is \"", name.substr(0, 40), "\"; use u8, u32, u64, i64 or f32");
}

TensorSpec read_spec(const Napi::Object& object) {
  TensorSpec spec;
  spec.name = read_string(object.Get("name"), "tensor.name");
  spec.dtype = writable_dtype(read_string(object.Get("dtype"), "tensor.dtype"));
  const Napi::Value shape = object.Get("shape");
  require(shape.IsArray(), "tensor.shape is not an array");
  for (std::uint32_t i = 0; i < shape.As<Napi::Array>().Length(); ++i)
    spec.shape.push_back(read_integer(shape.As<Napi::Array>().Get(i), "tensor.shape", 0, std::int64_t{1} << 53));
  return spec;
}

OwnedTensor read_tensor(const Napi::Object& object) {
  OwnedTensor tensor{read_spec(object), read_bytes(object.Get("data"), "tensor.data")};
  std::int64_t bytes = 0;
  require(!__builtin_mul_overflow(element_count(tensor.spec.shape), dtype_size(tensor.spec.dtype), &bytes) && bytes == static_cast<std::int64_t>(tensor.data.size()),
          "tensor \"", tensor.spec.name, "\" has ", tensor.data.size(), " bytes of data, which its shape and dtype do not");
  return tensor;
}

template <class Read>
auto read_list(Napi::Value value, Read read) {
  require(value.IsArray(), "tensors is not an array");
  const auto list = value.As<Napi::Array>();
  std::vector<decltype(read(Napi::Object()))> items;
  for (std::uint32_t i = 0; i < list.Length(); ++i) items.push_back(read(read_object(list.Get(i), "tensor")));
  return items;
}

Metadata read_metadata(Napi::Value value) {
  Metadata metadata;
  const auto entries = read_object(value, "metadata");
  const Napi::Array keys = entries.GetPropertyNames();
  for (std::uint32_t i = 0; i < keys.Length(); ++i) {
    const std::string key = read_string(keys.Get(i), "a metadata key");
    metadata.emplace(key, read_string(entries.Get(key), "a metadata value"));
  }
  return metadata;
}

// Work on a growing file that answers with nothing.
template <class Work>
Napi::Value run_void(const Napi::CallbackInfo& info, const std::shared_ptr<GrowingFileHandle>& file, Work work) {
  return promise_of(
      info.Env(), on_strand(file->strand()),
      [object = file->object(), work = std::move(work)] {
        work(*object);
        return true;
      },
      [](Napi::Env env, bool&) -> Napi::Value { return env.Undefined(); });
}

}  // namespace

Napi::Value write_tensors(const Napi::CallbackInfo& info) {
  const std::string path = read_path(info[0], "path");
  std::vector<OwnedTensor> tensors = read_list(info[1], read_tensor);
  Metadata metadata = read_metadata(info[2]);
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
          tensor.Set("shape", to_js(env, tensors[i].spec.shape));
          tensor.Set("data", adopt_bytes(env, std::move(tensors[i].data)));
          array.Set(static_cast<std::uint32_t>(i), tensor);
        }
        return array;
      });
}

Napi::Value open_tensors(const Napi::CallbackInfo& info) {
  const std::string path = read_path(info[0], "path");
  std::vector<TensorSpec> specs = read_list(info[1], read_spec);
  Metadata metadata = read_metadata(info[2]);
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [path, specs = std::move(specs), metadata = std::move(metadata)] { return std::make_shared<GrowingFile>(path, specs, metadata); },
      [](Napi::Env env, std::shared_ptr<GrowingFile>& file) {
        return wrap_handle(env, std::make_shared<GrowingFileHandle>("file", Context::of(env).threads(), std::move(file)));
      });
}

Napi::Value append_tensor(const Napi::CallbackInfo& info) {
  const auto file = handle_of<GrowingFile>(info[0], "file");
  return run_void(info, file, [name = read_string(info[1], "name"), bytes = read_bytes(info[2], "bytes")](GrowingFile& growing) {
    growing.writer.append(name, bytes.data(), static_cast<std::int64_t>(bytes.size()));
  });
}

Napi::Value finish_tensors(const Napi::CallbackInfo& info) {
  return run_void(info, handle_of<GrowingFile>(info[0], "file"), [](GrowingFile& growing) {
    growing.writer.finish();
    growing.staged.commit();
  });
}

}  // namespace engine::addon
