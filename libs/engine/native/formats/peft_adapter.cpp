#include "formats/peft_adapter.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/staged_output.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kConfigName = "adapter_config.json";
constexpr std::string_view kWeightsName = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kSuffixA = ".lora_A.weight";
constexpr std::string_view kSuffixB = ".lora_B.weight";

std::string last_component(const std::string& module) { return module.substr(module.rfind('.') + 1); }

// null, false, "", [] and {} all say that the feature is not used.
bool is_unset(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return true;
  if (found->is_boolean()) return !found->get<bool>();
  return (found->is_array() || found->is_object() || found->is_string()) && (found->empty() || *found == "");
}

PeftAdapter::Declared read_config(const fs::path& dir) {
  require(Code::io, fs::is_directory(dir), dir.string(), " is not a folder");
  require(Code::io, fs::exists(dir / kConfigName), dir.string(), " has no ", kConfigName);
  const Json config = read_json(dir / kConfigName, {.max_bytes = 4'000'000});
  const std::string type = json_string(config, "peft_type", kConfigName);
  require(Code::unsupported, type == "LORA", kConfigName, ": the adapter's type is \"", type.substr(0, 40), "\"; only LORA is supported");
  for (const char* feature : {"use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "layer_replication",
                              "trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"})
    require(Code::unsupported, is_unset(config, feature), kConfigName, ": \"", feature, "\" is set; only plain LoRA is supported");
  const std::string bias = find_json_string(config, "bias", kConfigName).value_or("none");
  require(Code::unsupported, bias == "none", kConfigName, ": \"bias\" is \"", bias.substr(0, 40), "\"; only \"none\" is supported");

  PeftAdapter::Declared result;
  result.lora.rank = json_int(config, "r", kConfigName);
  result.lora.alpha = json_number(config, "lora_alpha", kConfigName);
  result.lora.dropout = find_json_number(config, "lora_dropout", kConfigName).value_or(0.0);
  result.lora.rslora = find_json_bool(config, "use_rslora", kConfigName).value_or(false);
  result.lora.base_model_name = find_json_string(config, "base_model_name_or_path", kConfigName).value_or("");
  const Json& targets = json_member(config, "target_modules", kConfigName);
  result.targets_listed = !targets.is_string();
  if (result.targets_listed) result.lora.target_modules = *find_json_strings(config, "target_modules", kConfigName);
  return result;
}

fs::path weights_path(const fs::path& dir) {
  if (!fs::exists(dir / kWeightsName) && fs::exists(dir / "adapter_model.bin"))
    fail(Code::unsupported, dir.string(), " has its weights only as adapter_model.bin: a pickle can run code when it is opened, so it is never read; save "
         "the adapter as safetensors");
  require(Code::io, fs::exists(dir / kWeightsName), dir.string(), " has no ", kWeightsName);
  return dir / kWeightsName;
}

void check_matrix(const TensorView& tensor, std::size_t rank_axis, std::int64_t rank) {
  require(Code::unsupported, is_float_weight(tensor.dtype), "\"", tensor.name, "\" has type ", dtype_name(tensor.dtype), "; use f32, bf16 or f16");
  require(Code::corrupt, tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0, "\"", tensor.name, "\" is not a matrix");
  require(Code::corrupt, tensor.shape[rank_axis] == rank, "\"", tensor.name, "\" has rank ", tensor.shape[rank_axis], ", but ", kConfigName, " says ", rank);
}

}  // namespace

double LoraConfig::scale() const { return alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank)); }

void check_lora_config(const LoraConfig& config) {
  require(config.rank >= 1 && config.rank <= 4096, "the LoRA rank is ", config.rank, "; use 1 to 4096");
  require(std::isfinite(config.alpha) && config.alpha > 0, "the LoRA alpha is ", config.alpha, "; use a positive number");
  require(config.dropout >= 0 && config.dropout < 1, "the LoRA dropout is ", config.dropout, "; use 0 to below 1");
  require(!config.target_modules.empty(), "no target module is named; use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
  std::set<std::string_view> seen;
  for (const std::string& module : config.target_modules) {
    const auto& known = known_target_modules();
    require(std::find(known.begin(), known.end(), module) != known.end(), "the target module \"", module.substr(0, 80),
            "\" is not known; use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
    require(seen.insert(module).second, "the target module \"", module, "\" is named twice");
  }
}

const std::vector<std::string>& known_target_modules() {
  static const std::vector<std::string> kModules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return kModules;
}

std::string lora_a_name(std::string_view module) { return text(kPrefix, module, kSuffixA); }
std::string lora_b_name(std::string_view module) { return text(kPrefix, module, kSuffixB); }

// The configuration is judged before the weights are opened: its reasons are clearer than a missing tensor's.
PeftAdapter::PeftAdapter(const fs::path& dir) : PeftAdapter(read_config(dir), dir) {}

PeftAdapter::PeftAdapter(Declared declared, const fs::path& dir) : config_(std::move(declared.lora)), file_(weights_path(dir)) {
  std::map<std::string, AdapterPair> by_module;
  for (const TensorView& tensor : file_.tensors()) {
    const bool is_a = tensor.name.ends_with(kSuffixA), is_b = tensor.name.ends_with(kSuffixB);
    require(Code::unsupported, tensor.name.starts_with(kPrefix) && (is_a || is_b), kWeightsName, ": \"", tensor.name,
            "\" is no LoRA matrix (base_model.model.….lora_A.weight or lora_B.weight)");
    const std::string module = tensor.name.substr(kPrefix.size(), tensor.name.size() - kPrefix.size() - kSuffixA.size());
    require(Code::corrupt, !module.empty(), kWeightsName, ": \"", tensor.name, "\" names no module");
    check_matrix(tensor, is_a ? 0 : 1, config_.rank);
    AdapterPair& pair = by_module.try_emplace(module, AdapterPair{module, nullptr, nullptr}).first->second;
    (is_a ? pair.a : pair.b) = &tensor;
  }
  require(Code::corrupt, !by_module.empty(), kWeightsName, " holds no LoRA matrix");

  std::set<std::string> adapted;
  for (auto& [module, pair] : by_module) {
    require(Code::corrupt, pair.a != nullptr && pair.b != nullptr, kWeightsName, ": ", module, " has only one of lora_A and lora_B");
    adapted.insert(last_component(module));
    pairs_.push_back(pair);
  }
  if (declared.targets_listed) {
    const std::set<std::string> listed(config_.target_modules.begin(), config_.target_modules.end());
    for (const std::string& target : listed)
      require(Code::corrupt, adapted.contains(last_component(target)), kConfigName, " targets ", target, ", but ", kWeightsName, " has no matrix for it");
    std::set<std::string> listed_last;
    for (const std::string& target : listed) listed_last.insert(last_component(target));
    for (const std::string& module : adapted)
      require(Code::corrupt, listed_last.contains(module), kWeightsName, " adapts ", module, ", which ", kConfigName, " does not target");
  }
  config_.target_modules.assign(adapted.begin(), adapted.end());
  try {
    check_lora_config(config_);
  } catch (const Error& error) {
    fail(Code::unsupported, kConfigName, ": ", error.message());
  }
}

void write_peft_adapter(const fs::path& dir, const LoraConfig& config, const std::vector<AdapterMatrices>& matrices) {
  check_lora_config(config);
  Json targets = Json::array();
  for (const std::string& known : known_target_modules())
    if (std::find(config.target_modules.begin(), config.target_modules.end(), known) != config.target_modules.end()) targets.push_back(known);
  const Json json = {{"base_model_name_or_path", config.base_model_name.empty() ? Json(nullptr) : Json(config.base_model_name)},
                     {"bias", "none"},
                     {"fan_in_fan_out", false},
                     {"inference_mode", true},
                     {"init_lora_weights", true},
                     {"lora_alpha", config.alpha == std::floor(config.alpha) ? Json(static_cast<std::int64_t>(config.alpha)) : Json(config.alpha)},
                     {"lora_dropout", config.dropout},
                     {"modules_to_save", nullptr},
                     {"peft_type", "LORA"},
                     {"r", config.rank},
                     {"revision", nullptr},
                     {"target_modules", targets},
                     {"task_type", "CAUSAL_LM"},
                     {"use_dora", false},
                     {"use_rslora", config.rslora}};
  std::string written;
  try {
    written = json.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    fail(Code::invalid, "the base model's name is not UTF-8");
  }
  write_file(dir / kConfigName, written);

  std::vector<NamedTensor> tensors;
  for (const AdapterMatrices& matrix : matrices) {
    tensors.push_back({{lora_a_name(matrix.module), Dtype::f32, {config.rank, matrix.in}}, matrix.a});
    tensors.push_back({{lora_b_name(matrix.module), Dtype::f32, {matrix.out, config.rank}}, matrix.b});
  }
  write_safetensors(dir / kWeightsName, tensors, {{"format", "pt"}});
}

}  // namespace engine
