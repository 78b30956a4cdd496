// trainer.h: the functions of the addon that train. A micro-batch is { inputIds: Uint32Array, lossMask: Uint8Array, rowOffsets: Uint32Array }.
#pragma once

#include <napi.h>

namespace engine::addon {

Napi::Value create_trainer(const Napi::CallbackInfo& info);      // (model, options) -> { handle, trainableParameterCount, device, noGpuBecause, plan | null }
Napi::Value plan_training(const Napi::CallbackInfo& info);       // (modelDir | { config, weightBytes }, quantize, options, tokens) -> TrainingPlan
Napi::Value train_step(const Napi::CallbackInfo& info);          // (trainer, micro[], cancel | null) -> StepResult
Napi::Value evaluate(const Napi::CallbackInfo& info);            // (trainer, micro[], cancel | null) -> { loss, trainableTokens }
Napi::Value score_adapter(const Napi::CallbackInfo& info);       // (trainer, dir, tokens[], cancel | null) -> Float32Array[]
Napi::Value save_adapter(const Napi::CallbackInfo& info);        // (trainer, dir, baseModelName) -> undefined
Napi::Value save_checkpoint(const Napi::CallbackInfo& info);     // (trainer, dir) -> undefined
Napi::Value restore_checkpoint(const Napi::CallbackInfo& info);  // (trainer, dir) -> step
Napi::Value save_gradients(const Napi::CallbackInfo& info);      // (trainer, path) -> undefined

}  // namespace engine::addon
