#include "train/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/staged_output.h"
#include "formats/safetensors.h"
#include "train/trainer.h"

namespace engine {
namespace {

constexpr const char* kStateFile = "trainer_state.json";
constexpr const char* kAdapterFile = "adapter_model.safetensors";
constexpr const char* kParametersFile = "parameters.safetensors";
constexpr std::int64_t kVersion = 1;

const char* kind_name(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::linear: return "linear";
    case ScheduleKind::cosine: return "cosine";
    case ScheduleKind::constant: return "constant";
  }
  return "";
}

// Throws invalid with the path of the first value that differs.
void require_same(const Json& stored, const Json& ours, const std::string& path) {
  if (ours.is_object() && stored.is_object()) {
    for (const auto& [key, value] : ours.items()) {
      require(stored.contains(key), "the checkpoint does not say ", path, key, ", which this training needs to compare");
      require_same(stored.at(key), value, path + key + ".");
    }
    return;
  }
  const std::string name = path.substr(0, path.size() - 1);
  require(stored == ours, "the checkpoint was made with ", name, " = ", stored.dump().substr(0, 200), "; this training has ", ours.dump().substr(0, 200));
}

}  // namespace

Json describe_run(const ModelSpec& spec, Compute compute, const TrainerOptions& options) {
  Json method = {{"kind", "full"}};
  if (options.lora) {
    std::vector<std::string> targets = options.lora->target_modules;
    std::ranges::sort(targets);
    std::vector<std::string> whole = options.lora->modules_to_save;
    std::ranges::sort(whole);
    method = {{"kind", "lora"}, {"rank", options.lora->rank}, {"alpha", options.lora->alpha}, {"dropout", options.lora->dropout},
              {"rslora", options.lora->rslora}, {"dora", options.lora->dora}, {"target_modules", targets}, {"modules_to_save", whole},
              {"layers", options.lora->layers}, {"rank_pattern", options.lora->rank_pattern}, {"alpha_pattern", options.lora->alpha_pattern}};
  }
  return {{"model",
           {{"model_type", spec.model_type},
            {"layers", spec.layers},
            {"hidden_size", spec.hidden},
            {"intermediate_size", spec.ffn},
            {"heads", spec.heads},
            {"key_value_heads", spec.kv_heads},
            {"head_dim", spec.head_dim},
            {"vocab_size", spec.vocab},
            {"tied", spec.tied}}},
          {"compute", compute == Compute::bf16 ? "bf16" : "f32"},
          {"method", method},
          {"optimizer",
           {{"kind", options.optimizer.kind == OptimizerKind::adamw ? "adamw" : "adamw_8bit"},
            {"beta1", options.optimizer.beta1},
            {"beta2", options.optimizer.beta2},
            {"epsilon", options.optimizer.epsilon},
            {"weight_decay", options.optimizer.weight_decay},
            {"max_grad_norm", options.max_grad_norm}}},
          {"schedule",
           {{"kind", kind_name(options.schedule.kind)},
            {"warmup_steps", options.schedule.warmup_steps},
            {"total_steps", options.schedule.total_steps},
            {"learning_rate", options.schedule.learning_rate}}},
          {"neftune_alpha", options.neftune_alpha},
          {"rng", {{"kind", "philox4x32-10"}, {"seed", options.seed}}}};
}

void write_checkpoint(const std::filesystem::path& dir, const CheckpointState& state, const std::vector<NamedTensor>& optimizer, const LoraAdapter* adapter,
                      const FullParameters* full) {
  if (adapter != nullptr) {
    adapter->write(dir, "");
  } else {
    std::vector<NamedTensor> tensors;
    for (const auto& entry : full->entries()) tensors.push_back({{entry.parameter.name, Dtype::f32, entry.parameter.shape}, full->data() + entry.offset});
    write_safetensors(dir / kParametersFile, tensors, {});
  }
  write_safetensors(dir / kOptimizerFile, optimizer, {});
  const Json json = {{"version", kVersion}, {"step", state.step}, {"optimizer_updates", state.updates}, {"run", state.run}};
  write_file(dir / kStateFile, json.dump(2) + "\n");
}

CheckpointState read_checkpoint_state(const std::filesystem::path& dir, const Json& run) {
  const Json json = read_json(dir / kStateFile, {.max_bytes = 10'000'000});
  require(Code::corrupt, json.is_object(), kStateFile, " is not an object");
  const std::int64_t version = json_int(json, "version", kStateFile);
  require(Code::unsupported, version == kVersion, "the checkpoint has version ", version, "; this engine reads ", kVersion);
  CheckpointState state{json_member(json, "run", kStateFile), json_int(json, "step", kStateFile), json_int(json, "optimizer_updates", kStateFile)};
  require(Code::corrupt, state.step >= 0 && state.updates >= 0 && state.updates <= state.step, kStateFile, ": step ", state.step, " with ", state.updates,
          " optimizer updates");
  require_same(state.run, run, "");
  return state;
}

std::vector<float> read_checkpoint_values(const std::filesystem::path& dir, const LoraAdapter* adapter, const FullParameters* full) {
  const SafetensorsFile file(dir / (adapter != nullptr ? kAdapterFile : kParametersFile));
  std::vector<float> values(static_cast<std::size_t>(adapter != nullptr ? adapter->size() : full->size()), 0.0f);
  std::size_t count = 0;
  const auto copy = [&](const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t offset) {
    const TensorView& tensor = file.at(name);
    require(Code::corrupt, tensor.dtype == Dtype::f32 && tensor.shape == shape, "the checkpoint's ", name, " is ", dtype_name(tensor.dtype), " ",
            shape_text(tensor.shape), "; this training has f32 ", shape_text(shape));
    std::memcpy(values.data() + offset, tensor.data, static_cast<std::size_t>(tensor.bytes));
    ++count;
  };
  if (adapter != nullptr)
    adapter->for_each_tensor(copy);
  else
    for (const auto& entry : full->entries()) copy(entry.parameter.name, entry.parameter.shape, entry.offset);
  require(Code::corrupt, file.tensors().size() == count, "the checkpoint has ", file.tensors().size(), " tensors of trained values; this training has ", count);
  return values;
}

}  // namespace engine
