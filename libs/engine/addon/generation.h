// generation.h: the functions of the addon that generate.
#pragma once

#include <napi.h>

namespace engine::addon {

// (bytes, offsets) -> promise of a vocabulary: token t is bytes[offsets[t], offsets[t + 1]).
Napi::Value create_vocabulary(const Napi::CallbackInfo& info);
// (vocabulary, {classOf, classes, next, accepting, stack?: {outcomes, heights, returns}}) -> constraint; 2^32 − 1 in `next` and `outcomes` is none, and from
// 2^31 on `next` opens a bracket.
Napi::Value create_constraint(const Napi::CallbackInfo& info);

// (model, {maxRunning, memoryBudget, sameForAnyBatch | null, mostStepGrowth}) -> promise of {device, memory, totalBlocks}. Once for a model, before its first generation.
Napi::Value open_generator(const Napi::CallbackInfo& info);
// (model, tokens, adapter | null, sampling, {generated, scored, constraint | null, priority, prefixScope | null}, onSteps) -> request number.   onSteps(steps: GenerateStep[], ended: boolean, error | null): steps that
// were made since the last call, in order; after `ended` it is not called again.
Napi::Value generate(const Napi::CallbackInfo& info);
// (model, tokens, adapter | null, pooling: 'mean' | 'last', priority, onEnd) -> request number.   onEnd(vector: Float32Array | null, error | null), once.
Napi::Value embed(const Napi::CallbackInfo& info);
// (model, onChanges) -> {watch, callback, blockTokens}.   onChanges(changes: Uint32Array, whole: boolean): first all that the prefix cache remembers, then what
// changed; each change is 0 and a node that is gone, or 1, a node, its parent, 8 words of its scope and, after their number, its tokens. Nodes are two
// words, the lower one first. null: the cache is gone. The process does not live on for it.
Napi::Value watch_cache(const Napi::CallbackInfo& info);
Napi::Value unwatch_cache(const Napi::CallbackInfo& info);  // (model, watch, callback); an unknown one or a closed model is ignored
Napi::Value generation_load(const Napi::CallbackInfo& info);    // (model) -> how busy its generator is, or null before the first request
Napi::Value cancel_generation(const Napi::CallbackInfo& info);  // (model, request); a finished request or a closed model is ignored

}  // namespace engine::addon
