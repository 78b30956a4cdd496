// module.cpp: what the addon exports. src/native.ts declares the same names in the same order.
#include <napi.h>

#include "context.h"
#include "core/allocator.h"
#include "core/version.h"
#include "files.h"
#include "generation.h"
#include "handles.h"
#include "model.h"
#include "tensors.h"
#include "trainer.h"

namespace engine::addon {
namespace {

template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
void add(Napi::Env env, Napi::Object& exports, const char* name) {
  exports.Set(name, Napi::Function::New(env, guarded<Function>, name));
}

// () -> nothing (core/allocator.h)
Napi::Value bound_process_allocator(const Napi::CallbackInfo& info) {
  bound_allocator();
  return info.Env().Undefined();
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Context(env));
  exports.Set("version", Napi::String::New(env, engine_version()));
  add<bound_process_allocator>(env, exports, "boundAllocator");

  add<list_devices>(env, exports, "listDevices");
  add<create_cancel>(env, exports, "createCancel");
  add<cancel>(env, exports, "cancel");
  add<close_handle>(env, exports, "close");

  add<inspect_safetensors>(env, exports, "inspectSafetensors");
  add<inspect_model_dir>(env, exports, "inspectModel");
  add<quantize_model_dir>(env, exports, "quantizeModel");
  add<merge_adapter_dir>(env, exports, "mergeAdapter");
  add<export_gguf_file>(env, exports, "exportGguf");
  add<verify_gguf_file>(env, exports, "verifyGguf");
  add<write_tensors>(env, exports, "writeSafetensors");
  add<read_tensors>(env, exports, "readSafetensors");
  add<open_tensors>(env, exports, "openSafetensors");
  add<append_tensor>(env, exports, "appendTensor");
  add<finish_tensors>(env, exports, "finishSafetensors");

  add<used_device_memory>(env, exports, "usedDeviceMemory");
  add<load_model>(env, exports, "loadModel");
  add<load_adapter>(env, exports, "loadAdapter");
  add<score>(env, exports, "score");
  add<logits>(env, exports, "logits");

  add<create_vocabulary>(env, exports, "createVocabulary");
  add<create_constraint>(env, exports, "createConstraint");
  add<open_generator>(env, exports, "openGenerator");
  add<generate>(env, exports, "generate");
  add<embed>(env, exports, "embed");
  add<watch_cache>(env, exports, "watchCache");
  add<unwatch_cache>(env, exports, "unwatchCache");
  add<generation_load>(env, exports, "generationLoad");
  add<cancel_generation>(env, exports, "cancelGeneration");

  add<create_trainer>(env, exports, "createTrainer");
  add<plan_training>(env, exports, "planTraining");
  add<train_step>(env, exports, "trainStep");
  add<evaluate>(env, exports, "evaluate");
  add<score_adapter>(env, exports, "scoreAdapter");
  add<save_adapter>(env, exports, "saveAdapter");
  add<save_checkpoint>(env, exports, "saveCheckpoint");
  add<restore_checkpoint>(env, exports, "restoreCheckpoint");
  add<save_gradients>(env, exports, "saveGradients");
  return exports;
}

NODE_API_MODULE(engine, initialize)

}  // namespace
}  // namespace engine::addon
