#include "trainer.h"

#include "arguments.h"
#include "context.h"
#include "convert.h"
#include "core/json.h"
#include "handles.h"
#include "model_handle.h"
#include "train/backend.h"
#include "train/memory_plan.h"

namespace engine::addon {
namespace {

using TrainerHandle = TypedHandle<AnyTrainer>;
constexpr std::int64_t kManySteps = std::int64_t{1} << 40;
constexpr std::int64_t kLargestMemory = std::int64_t{1} << 50;

// A micro-batch of our own: JavaScript may change its arrays while we compute.
struct OwnedMicroBatch {
  std::vector<std::uint32_t> input_ids;
  std::vector<std::uint8_t> loss_mask;
  std::vector<std::uint32_t> row_offsets;
};

std::vector<OwnedMicroBatch> read_micros(Napi::Value value) {
  require(value.IsArray(), "the micro-batches are not an array");
  const auto array = value.As<Napi::Array>();
  std::vector<OwnedMicroBatch> micros;
  for (std::uint32_t i = 0; i < array.Length(); ++i) {
    const auto micro = read_object(array.Get(i), "a micro-batch");
    micros.push_back({read_uint32s(micro.Get("inputIds"), "inputIds"), read_bytes(micro.Get("lossMask"), "lossMask"),
                      read_uint32s(micro.Get("rowOffsets"), "rowOffsets")});
  }
  return micros;
}

std::vector<MicroBatch> views(const std::vector<OwnedMicroBatch>& micros) {
  std::vector<MicroBatch> result;
  for (const OwnedMicroBatch& micro : micros) result.push_back({micro.input_ids, micro.loss_mask, micro.row_offsets});
  return result;
}

LoraConfig read_lora(const Napi::Object& method) {
  LoraConfig lora;
  lora.rank = read_integer(method.Get("rank"), "rank", 1, 4096);
  lora.alpha = read_number(method.Get("alpha"), "alpha");
  lora.dropout = read_number(method.Get("dropout"), "dropout");
  lora.rslora = read_boolean(method.Get("rslora"), "rslora");
  lora.dora = read_boolean(method.Get("dora"), "dora");
  lora.modules_to_save = read_strings(method.Get("modulesToSave"), "modulesToSave");
  const std::vector<std::uint32_t> layers = read_uint32s(method.Get("layers"), "layers");
  lora.layers.assign(layers.begin(), layers.end());
  lora.target_modules = read_strings(method.Get("targetModules"), "targetModules");
  return lora;
}

Schedule read_schedule(const Napi::Object& object) {
  Schedule schedule;
  const std::string kind = read_string(object.Get("kind"), "schedule.kind");
  require(kind == "linear" || kind == "cosine" || kind == "constant", "schedule.kind is \"", kind.substr(0, 40), "\"; use linear, cosine or constant");
  schedule.kind = kind == "linear" ? ScheduleKind::linear : kind == "cosine" ? ScheduleKind::cosine : ScheduleKind::constant;
  schedule.warmup_steps = read_integer(object.Get("warmupSteps"), "schedule.warmupSteps", 0, kManySteps);
  schedule.total_steps = read_integer(object.Get("totalSteps"), "schedule.totalSteps", 1, kManySteps);
  schedule.learning_rate = read_number(object.Get("learningRate"), "schedule.learningRate");
  return schedule;
}

TrainerOptions read_options(Napi::Value value) {
  const auto object = read_object(value, "the trainer's options");
  TrainerOptions options;
  const auto method = read_object(object.Get("method"), "method");
  const std::string kind = read_string(method.Get("kind"), "method.kind");
  require(kind == "lora" || kind == "full", "method.kind is \"", kind.substr(0, 40), "\"; use lora or full");
  if (kind == "lora") {
    options.lora = read_lora(method);
    if (!is_absent(method.Get("initAdapterDir"))) options.initial_adapter_dir = read_path(method.Get("initAdapterDir"), "initAdapterDir");
  }
  const std::string optimizer = read_string(object.Get("optimizer"), "optimizer");
  require(optimizer == "adamw" || optimizer == "adamw_8bit", "optimizer is \"", optimizer.substr(0, 40), "\"; use adamw or adamw_8bit");
  options.optimizer = {.kind = optimizer == "adamw" ? OptimizerKind::adamw : OptimizerKind::adamw_8bit,
                       .beta1 = read_number(object.Get("beta1"), "beta1"),
                       .beta2 = read_number(object.Get("beta2"), "beta2"),
                       .epsilon = read_number(object.Get("epsilon"), "epsilon"),
                       .weight_decay = read_number(object.Get("weightDecay"), "weightDecay")};
  options.schedule = read_schedule(read_object(object.Get("schedule"), "schedule"));
  options.max_grad_norm = read_number(object.Get("maxGradNorm"), "maxGradNorm");
  options.seed = static_cast<std::uint64_t>(read_integer(object.Get("seed"), "seed", 0, (std::int64_t{1} << 53) - 1));
  options.gradient_checkpointing = read_boolean(object.Get("gradientCheckpointing"), "gradientCheckpointing");
  options.neftune_alpha = read_number(object.Get("neftuneAlpha"), "neftuneAlpha");
  options.memory_budget = read_integer(object.Get("memoryBudget"), "memoryBudget", 0, kLargestMemory);
  options.micro_batch_tokens = read_integer(object.Get("microBatchTokens"), "microBatchTokens", 0, INT32_MAX);
  return options;
}

Napi::Value to_js(Napi::Env env, const std::optional<TrainingPlan>& plan) {
  if (!plan) return env.Null();
  auto object = Napi::Object::New(env);
  object.Set("budgetBytes", addon::to_js(env, plan->budget_bytes));
  object.Set("deviceBytes", addon::to_js(env, plan->device_bytes));
  object.Set("pinnedBytes", addon::to_js(env, plan->pinned_bytes));
  object.Set("tokens", addon::to_js(env, plan->tokens));
  object.Set("keptLayers", addon::to_js(env, plan->kept_layers));
  object.Set("partlyKeptLayers", addon::to_js(env, plan->partly_kept_layers));
  object.Set("recomputedLayers", addon::to_js(env, plan->recomputed_layers));
  object.Set("offloadedLayers", addon::to_js(env, plan->offloaded_layers));
  object.Set("decodedLayers", addon::to_js(env, plan->decoded_layers));
  object.Set("embeddingOnDevice", addon::to_js(env, plan->embedding_on_device));
  const TrainingBytes& bytes = plan->parts;
  auto parts = Napi::Object::New(env);
  for (const auto& [name, value] : {std::pair{"weights", bytes.weights}, {"adapter", bytes.adapter}, {"gradients", bytes.gradients}, {"optimizer", bytes.optimizer},
                                    {"checkpoints", bytes.checkpoints}, {"activations", bytes.activations}, {"live", bytes.live}, {"logits", bytes.logits}})
    parts.Set(name, addon::to_js(env, value));
  object.Set("parts", parts);
  object.Set("table", addon::to_js(env, plan->table));
  return object;
}

// Trainer work that answers with nothing.
template <class Work>
Napi::Value run_void(const Napi::CallbackInfo& info, const std::shared_ptr<TrainerHandle>& trainer, Work work) {
  return promise_of(
      info.Env(), on_strand(trainer->strand()),
      [object = trainer->object(), work = std::move(work)] {
        work(*object);
        return true;
      },
      [](Napi::Env env, bool&) -> Napi::Value { return env.Undefined(); });
}

}  // namespace

Napi::Value create_trainer(const Napi::CallbackInfo& info) {
  const auto model = model_of(info[0]);
  const TrainerOptions options = read_options(info[1]);
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [object = model->object(), device = model->device(), options] { return std::make_shared<PlacedTrainer>(create_trainer(object, device, options)); },
      [model](Napi::Env env, std::shared_ptr<PlacedTrainer>& placed) -> Napi::Value {
        require(!model->closed(), "the model was closed while the trainer was made");
        auto object = Napi::Object::New(env);
        object.Set("trainableParameterCount", to_js(env, placed->trainer->trainable_parameter_count()));
        object.Set("device", to_js(env, text(device_kind_name(placed->device.kind), ":", placed->device.index)));
        object.Set("noGpuBecause", to_js(env, placed->no_gpu_because));
        object.Set("plan", to_js(env, placed->trainer->plan()));
        const auto handle = std::make_shared<TrainerHandle>("trainer", Context::of(env).threads(), std::shared_ptr<AnyTrainer>(std::move(placed->trainer)));
        model->add_dependent(handle);
        object.Set("handle", wrap_handle(env, handle));
        return object;
      });
}

Napi::Value plan_training(const Napi::CallbackInfo& info) {
  // A folder, or what a catalogue knows of one: the text of its config.json and the size of its weights.
  std::string dir, config;
  std::int64_t stored = 0;
  if (info[0].IsString()) {
    dir = read_path(info[0], "modelDir");
  } else {
    const auto object = read_object(info[0], "model");
    config = read_string(object.Get("config"), "model.config");
    stored = read_integer(object.Get("weightBytes"), "model.weightBytes", 1, kLargestMemory);
  }
  const std::string quantize = read_string(info[1], "quantize");
  require(quantize == "none" || quantize == "nf4", "quantize is \"", quantize.substr(0, 40), "\"; use none or nf4");
  const TrainerOptions options = read_options(info[2]);
  const std::int64_t tokens = read_integer(info[3], "tokens", 1, INT32_MAX);
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [dir, config, stored, on_load = quantize == "nf4" ? QuantizeOnLoad::nf4 : QuantizeOnLoad::none, options, tokens] {
        if (dir.empty()) {
          const ModelSpec spec = read_spec(parse_json(config, "config.json"));
          return std::optional(engine::plan_training(spec, loaded_weight_bytes(spec, stored, on_load), options, tokens));
        }
        const HfFolder folder(dir);
        const ModelSpec spec = read_spec(folder.config());
        return std::optional(engine::plan_training(spec, loaded_weight_bytes(spec, folder, on_load), options, tokens));
      },
      [](Napi::Env env, std::optional<TrainingPlan>& plan) -> Napi::Value { return to_js(env, plan); });
}

Napi::Value train_step(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  auto micros = read_micros(info[1]);
  const auto flag = cancel_flag(info[2], {trainer.get()});
  return promise_of(
      info.Env(), on_strand(trainer->strand()),
      [object = trainer->object(), micros = std::move(micros), flag] {
        check_cancelled(flag.get());
        StepResult result = object->train_step(views(micros), flag.get());
        return std::pair(result, object->plan());
      },
      [](Napi::Env env, std::pair<StepResult, std::optional<TrainingPlan>>& done) -> Napi::Value {
        const auto& [result, plan] = done;
        auto step = Napi::Object::New(env);
        step.Set("step", to_js(env, result.step));
        step.Set("loss", to_js(env, result.loss));
        step.Set("gradNorm", to_js(env, result.grad_norm));
        step.Set("learningRate", to_js(env, result.learning_rate));
        step.Set("tokens", to_js(env, result.tokens));
        step.Set("trainableTokens", to_js(env, result.trainable_tokens));
        step.Set("skipped", to_js(env, result.skipped));
        step.Set("durationMs", to_js(env, result.duration_ms));
        step.Set("flops", to_js(env, result.flops));
        step.Set("peakBytes", to_js(env, result.peak_bytes));
        step.Set("plan", to_js(env, plan));
        return step;
      });
}

Napi::Value evaluate(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  auto micros = read_micros(info[1]);
  const auto flag = cancel_flag(info[2], {trainer.get()});
  return promise_of(
      info.Env(), on_strand(trainer->strand()),
      [object = trainer->object(), micros = std::move(micros), flag] {
        check_cancelled(flag.get());
        return object->evaluate(views(micros), flag.get());
      },
      [](Napi::Env env, Evaluation& result) -> Napi::Value {
        auto evaluation = Napi::Object::New(env);
        evaluation.Set("loss", to_js(env, result.loss));
        evaluation.Set("trainableTokens", to_js(env, result.trainable_tokens));
        return evaluation;
      });
}

Napi::Value score_adapter(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  auto sequences = read_sequences(info[2]);
  const auto flag = cancel_flag(info[3], {trainer.get()});
  return promise_of(
      info.Env(), on_strand(trainer->strand()),
      [object = trainer->object(), dir = read_path(info[1], "dir"), sequences = std::move(sequences), flag] {
        check_cancelled(flag.get());
        return object->score_adapter(dir, sequences, flag.get());
      },
      [](Napi::Env env, std::vector<std::vector<float>>& scores) -> Napi::Value {
        auto lists = Napi::Array::New(env, scores.size());
        for (std::size_t i = 0; i < scores.size(); ++i) lists.Set(static_cast<std::uint32_t>(i), adopt_floats(env, std::move(scores[i])));
        return lists;
      });
}

Napi::Value save_adapter(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  return run_void(info, trainer, [dir = read_path(info[1], "dir"), base = read_string(info[2], "baseModelName")](AnyTrainer& t) { t.save(dir, base); });
}

Napi::Value save_checkpoint(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  return run_void(info, trainer, [dir = read_path(info[1], "dir")](AnyTrainer& t) { t.save_checkpoint(dir); });
}

Napi::Value restore_checkpoint(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  return promise_of(
      info.Env(), on_strand(trainer->strand()),
      [object = trainer->object(), dir = read_path(info[1], "dir")] {
        object->restore_checkpoint(dir);
        return object->step();
      },
      [](Napi::Env env, std::int64_t& step) { return to_js(env, step); });
}

Napi::Value save_gradients(const Napi::CallbackInfo& info) {
  const auto trainer = handle_of<AnyTrainer>(info[0], "trainer");
  return run_void(info, trainer, [path = read_path(info[1], "path")](AnyTrainer& t) { t.save_gradients(path); });
}

}  // namespace engine::addon
