#include "formats/peft_adapter.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/staged_output.h"
#include "formats/module_pattern.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kConfigName = "adapter_config.json";
constexpr std::string_view kWeightsName = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kSuffixA = ".lora_A.weight";
constexpr std::string_view kSuffixB = ".lora_B.weight";
constexpr std::string_view kSuffixMagnitude = ".lora_magnitude_vector";
constexpr std::string_view kSuffixes[] = {kSuffixA, kSuffixB, kSuffixMagnitude};
constexpr std::string_view kWeightSuffix = ".weight";

std::string last_component(const std::string& module) { return module.substr(module.rfind('.') + 1); }

// null, false, "", [] and {} all say that the feature is not used.
bool is_unset(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return true;
  if (found->is_boolean()) return !found->get<bool>();
  return (found->is_array() || found->is_object() || found->is_string()) && (found->empty() || *found == "");
}

void check_pattern_key(const std::string& key, const char* field) {
  try {
    ModulePattern{key};
  } catch (const Error& error) {
    fail(Code::unsupported, kConfigName, ": \"", field, "\" has the key \"", key.substr(0, 80), "\", which cannot be read as a pattern: ", error.message());
  }
}

template <class Value, class Read>
std::vector<std::pair<std::string, Value>> read_pattern(const Json& config, const char* field, Read read) {
  std::vector<std::pair<std::string, Value>> pattern;
  if (is_unset(config, field)) return pattern;
  const Json& object = config.at(field);
  require(Code::corrupt, object.is_object(), kConfigName, ": \"", field, "\" is not an object");
  for (const auto& [key, value] : object.items()) {
    check_pattern_key(key, field);
    pattern.emplace_back(key, read(object, key.c_str(), field));
  }
  return pattern;
}

std::vector<std::int64_t> read_layers(const Json& config) {
  const auto found = config.find("layers_to_transform");
  if (found == config.end() || found->is_null()) return {};
  const Json list = found->is_array() ? *found : Json::array({*found});
  std::vector<std::int64_t> layers;
  for (const Json& layer : list) {
    require(Code::corrupt, layer.is_number_integer() && layer >= 0 && layer < 1'000'000, kConfigName, ": \"layers_to_transform\" is not a list of layer numbers");
    layers.push_back(layer.get<std::int64_t>());
  }
  std::ranges::sort(layers);
  require(Code::corrupt, std::ranges::adjacent_find(layers) == layers.end(), kConfigName, ": \"layers_to_transform\" names a layer twice");
  return layers;
}

// Initializations that leave W as it is. The others (pissa, olora, corda, eva, loftq, …) subtract something from the base or fit it to data, so that A and
// B mean nothing on the base that a folder names.
void refuse_other_initialization(const Json& config) {
  const auto found = config.find("init_lora_weights");
  if (found == config.end() || found->is_null() || found->is_boolean()) return;
  const std::string name = found->is_string() ? found->get<std::string>() : found->dump();
  require(Code::unsupported, name == "gaussian" || name == "orthogonal", kConfigName, ": \"init_lora_weights\" is \"", name.substr(0, 40),
          "\", which changes the base's weights or depends on data; convert the adapter to plain LoRA when saving it "
          "(save_pretrained with path_initial_model_for_weight_conversion)");
}

void refuse_other_features(const Json& config) {
  for (const char* feature : {"fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora",
                              "alora_invocation_tokens", "arrow_config", "exclude_modules", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config",
                              "lora_ga_config", "velora_config", "monteclora_config", "kasa_config", "megatron_config"})
    require(Code::unsupported, is_unset(config, feature), kConfigName, ": \"", feature, "\" is set; this engine does not have it");
  const std::string bias = find_json_string(config, "bias", kConfigName).value_or("none");
  require(Code::unsupported, bias == "none", kConfigName, ": \"bias\" is \"", bias.substr(0, 40), "\"; only \"none\" is supported");
  if (const auto pattern = config.find("layers_pattern"); !is_unset(config, "layers_pattern"))
    require(Code::unsupported, *pattern == "layers" || *pattern == Json::array({"layers"}), kConfigName, ": \"layers_pattern\" is ", pattern->dump().substr(0, 40),
            "; only \"layers\" is supported");
  refuse_other_initialization(config);
}

std::vector<std::string> read_saved_modules(const Json& config) {
  std::vector<std::string> modules = find_json_strings(config, "modules_to_save", kConfigName).value_or(std::vector<std::string>{});
  for (std::string& module : modules) {
    const std::string name = last_component(module);
    require(Code::unsupported, name == kEmbeddingModule || name == kHeadModule, kConfigName, ": \"modules_to_save\" has \"", module.substr(0, 80),
            "\"; only embed_tokens and lm_head are supported");
    module = name;
  }
  std::ranges::sort(modules);
  modules.erase(std::unique(modules.begin(), modules.end()), modules.end());
  return modules;
}

PeftAdapter::Declared read_config(const fs::path& dir) {
  require(Code::io, fs::is_directory(dir), dir.string(), " is not a folder");
  require(Code::io, fs::exists(dir / kConfigName), dir.string(), " has no ", kConfigName);
  const Json config = read_json(dir / kConfigName, {.max_bytes = 4'000'000});
  const std::string type = json_string(config, "peft_type", kConfigName);
  require(Code::unsupported, type == "LORA", kConfigName, ": the adapter's type is \"", type.substr(0, 40), "\"; only LORA is supported");
  refuse_other_features(config);

  PeftAdapter::Declared result;
  LoraConfig& lora = result.lora;
  lora.rank = json_int(config, "r", kConfigName);
  lora.alpha = json_number(config, "lora_alpha", kConfigName);
  lora.dropout = find_json_number(config, "lora_dropout", kConfigName).value_or(0.0);
  lora.rslora = find_json_bool(config, "use_rslora", kConfigName).value_or(false);
  lora.dora = find_json_bool(config, "use_dora", kConfigName).value_or(false);
  lora.base_model_name = find_json_string(config, "base_model_name_or_path", kConfigName).value_or("");
  lora.modules_to_save = read_saved_modules(config);
  lora.layers = read_layers(config);
  lora.rank_pattern = read_pattern<std::int64_t>(config, "rank_pattern", json_int);
  lora.alpha_pattern = read_pattern<double>(config, "alpha_pattern", json_number);
  const Json& targets = json_member(config, "target_modules", kConfigName);
  result.targets_listed = !targets.is_string();
  if (result.targets_listed) lora.target_modules = *find_json_strings(config, "target_modules", kConfigName);
  return result;
}

fs::path weights_path(const fs::path& dir) {
  if (!fs::exists(dir / kWeightsName) && fs::exists(dir / "adapter_model.bin"))
    fail(Code::unsupported, dir.string(), " has its weights only as adapter_model.bin: a pickle can run code when it is opened, so it is never read; save "
         "the adapter as safetensors");
  require(Code::io, fs::exists(dir / kWeightsName), dir.string(), " has no ", kWeightsName);
  return dir / kWeightsName;
}

void check_float(const TensorView& tensor) {
  require(Code::unsupported, is_float_weight(tensor.dtype), "\"", tensor.name, "\" has type ", dtype_name(tensor.dtype), "; use f32, bf16 or f16");
}

void check_matrix(const TensorView& tensor, std::size_t rank_axis, std::int64_t rank) {
  require(Code::corrupt, tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0, "\"", tensor.name, "\" is not a matrix");
  require(Code::corrupt, tensor.shape[rank_axis] == rank, "\"", tensor.name, "\" has rank ", tensor.shape[rank_axis], ", but ", kConfigName, " says ", rank);
}

}  // namespace

namespace {

double scale_for(double alpha, std::int64_t rank, bool rslora) { return alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank)); }

// Of the first entry whose key names the module.
template <class Value>
Value value_for(const std::vector<std::pair<std::string, Value>>& pattern, std::string_view module, Value otherwise) {
  const auto found = std::ranges::find_if(pattern, [&](const auto& entry) { return ModulePattern(entry.first).names(module); });
  return found == pattern.end() ? otherwise : found->second;
}

}  // namespace

double LoraConfig::scale() const { return scale_for(alpha, rank, rslora); }
std::int64_t LoraConfig::rank_of(std::string_view module) const { return value_for(rank_pattern, module, rank); }
double LoraConfig::scale_of(std::string_view module) const { return scale_for(value_for(alpha_pattern, module, alpha), rank_of(module), rslora); }

void check_lora_config(const LoraConfig& config) {
  const auto check_rank = [](std::int64_t rank) { require(rank >= 1 && rank <= 4096, "the LoRA rank is ", rank, "; use 1 to 4096"); };
  const auto check_alpha = [](double alpha) { require(std::isfinite(alpha) && alpha > 0, "the LoRA alpha is ", alpha, "; use a positive number"); };
  check_rank(config.rank);
  check_alpha(config.alpha);
  for (const auto& [key, rank] : config.rank_pattern) check_rank(rank);
  for (const auto& [key, alpha] : config.alpha_pattern) check_alpha(alpha);
  require(config.dropout >= 0 && config.dropout < 1, "the LoRA dropout is ", config.dropout, "; use 0 to below 1");
  require(!config.target_modules.empty(), "no target module is named; use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
  std::set<std::string_view> seen;
  for (const std::string& module : config.target_modules) {
    const auto& known = known_target_modules();
    require(std::find(known.begin(), known.end(), module) != known.end(), "the target module \"", module.substr(0, 80),
            "\" is not known; use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
    require(seen.insert(module).second, "the target module \"", module, "\" is named twice");
  }
  for (const std::string& module : config.modules_to_save) {
    require(module == kEmbeddingModule || module == kHeadModule, "the module to save \"", module.substr(0, 80), "\" is not known; use embed_tokens or lm_head");
    require(seen.insert(module).second, "the module to save \"", module, "\" is named twice");
  }
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    require(config.layers[i] >= 0, "the layer ", config.layers[i], " is to be adapted; layers count from 0");
    require(i == 0 || config.layers[i - 1] < config.layers[i], "the layers to adapt are not in ascending order, each once");
  }
}

const std::vector<std::string>& known_target_modules() {
  static const std::vector<std::string> kModules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return kModules;
}

std::string lora_a_name(std::string_view module) { return text(kPrefix, module, kSuffixA); }
std::string lora_b_name(std::string_view module) { return text(kPrefix, module, kSuffixB); }
std::string lora_magnitude_name(std::string_view module) { return text(kPrefix, module, kSuffixMagnitude); }
std::string saved_module_name(std::string_view module) { return text(kPrefix, module, kWeightSuffix); }

// The configuration is judged before the weights are opened: its reasons are clearer than a missing tensor's.
PeftAdapter::PeftAdapter(const fs::path& dir) : PeftAdapter(read_config(dir), dir) {}

bool PeftAdapter::take_saved_module(const TensorView& tensor) {
  const bool is_embedding = tensor.name == saved_module_name(kEmbeddingPath);
  if (!is_embedding && tensor.name != saved_module_name(kHeadPath)) return false;
  const std::string_view module = is_embedding ? kEmbeddingModule : kHeadModule;
  require(Code::unsupported, std::ranges::find(config_.modules_to_save, module) != config_.modules_to_save.end(), kWeightsName, " holds ", tensor.name, ", but ",
          kConfigName, " does not name ", module, " among modules_to_save");
  check_float(tensor);
  require(Code::corrupt, tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0, "\"", tensor.name, "\" is not a matrix");
  (is_embedding ? embedding_ : head_) = &tensor;
  return true;
}

void PeftAdapter::check_targets(bool listed, const std::set<std::string>& adapted) {
  targets_are_names_ = listed;
  if (!listed) return;
  std::set<std::string> listed_last;
  for (const std::string& target : config_.target_modules) {
    listed_last.insert(last_component(target));
    targets_are_names_ = targets_are_names_ && target.find('.') == std::string::npos;
    require(Code::corrupt, adapted.contains(last_component(target)), kConfigName, " targets ", target, ", but ", kWeightsName, " has no matrix for it");
  }
  for (const std::string& module : adapted)
    require(Code::corrupt, listed_last.contains(module), kWeightsName, " adapts ", module, ", which ", kConfigName, " does not target");
}

PeftAdapter::PeftAdapter(Declared declared, const fs::path& dir) : config_(std::move(declared.lora)), file_(weights_path(dir)) {
  std::map<std::string, AdapterPair> by_module;
  for (const TensorView& tensor : file_.tensors()) {
    if (take_saved_module(tensor)) continue;
    const auto suffix = std::ranges::find_if(kSuffixes, [&](std::string_view ending) { return tensor.name.ends_with(ending); });
    require(Code::unsupported, tensor.name.starts_with(kPrefix) && suffix != std::end(kSuffixes) && (*suffix != kSuffixMagnitude || config_.dora), kWeightsName,
            ": \"", tensor.name, "\" is no tensor of this adapter (base_model.model.….lora_A.weight or lora_B.weight",
            config_.dora ? ", or lora_magnitude_vector" : "", ")");
    const std::string module = tensor.name.substr(kPrefix.size(), std::max(tensor.name.size(), kPrefix.size() + suffix->size()) - kPrefix.size() - suffix->size());
    require(Code::corrupt, !module.empty(), kWeightsName, ": \"", tensor.name, "\" names no module");
    AdapterPair& pair = by_module.try_emplace(module, AdapterPair{module, nullptr, nullptr}).first->second;
    check_float(tensor);
    if (*suffix == kSuffixMagnitude) {
      require(Code::corrupt, tensor.shape.size() == 1 && tensor.shape[0] > 0, "\"", tensor.name, "\" is not a vector");
      pair.magnitude = &tensor;
      continue;
    }
    const bool is_a = *suffix == kSuffixA;
    check_matrix(tensor, is_a ? 0 : 1, config_.rank_of(module));
    (is_a ? pair.a : pair.b) = &tensor;
  }
  require(Code::corrupt, !by_module.empty(), kWeightsName, " holds no LoRA matrix");

  std::set<std::string> adapted;
  for (auto& [module, pair] : by_module) {
    require(Code::corrupt, pair.a != nullptr && pair.b != nullptr, kWeightsName, ": ", module, " has only one of lora_A and lora_B");
    require(Code::corrupt, !config_.dora || pair.magnitude != nullptr, kWeightsName, ": ", module, " has no lora_magnitude_vector, though ", kConfigName, " says DoRA");
    require(Code::corrupt, pair.magnitude == nullptr || pair.magnitude->shape[0] == pair.b->shape[0], kWeightsName, ": the magnitude vector of ", module, " has ",
            pair.magnitude == nullptr ? 0 : pair.magnitude->shape[0], " values for ", pair.b->shape[0], " outputs");
    adapted.insert(last_component(module));
    pairs_.push_back(pair);
  }
  for (const std::string& module : config_.modules_to_save)
    require(Code::corrupt, (module == kEmbeddingModule ? embedding_ : head_) != nullptr, kConfigName, " names ", module, " among modules_to_save, but ", kWeightsName,
            " does not hold it");
  check_targets(declared.targets_listed, adapted);
  config_.target_modules.assign(adapted.begin(), adapted.end());
  try {
    check_lora_config(config_);
  } catch (const Error& error) {
    fail(Code::unsupported, kConfigName, ": ", error.message());
  }
}

namespace {

Json module_list(const std::vector<std::string_view>& order, const std::vector<std::string>& chosen) {
  Json list = Json::array();
  for (const std::string_view name : order)
    if (std::ranges::find(chosen, name) != chosen.end()) list.push_back(std::string(name));
  return list;
}

template <class Value>
Json pattern_object(const std::vector<std::pair<std::string, Value>>& pattern) {
  Json object = Json::object();
  for (const auto& [module, value] : pattern) object[module] = value;
  return object;
}

}  // namespace

void write_peft_adapter(const fs::path& dir, const LoraConfig& config, const std::vector<AdapterMatrices>& matrices, const std::vector<SavedMatrix>& saved) {
  check_lora_config(config);
  const Json targets = module_list({known_target_modules().begin(), known_target_modules().end()}, config.target_modules);
  const Json json = {{"alpha_pattern", pattern_object(config.alpha_pattern)},
                     {"base_model_name_or_path", config.base_model_name.empty() ? Json(nullptr) : Json(config.base_model_name)},
                     {"bias", "none"},
                     {"fan_in_fan_out", false},
                     {"inference_mode", true},
                     {"init_lora_weights", true},
                     {"layers_pattern", nullptr},
                     {"layers_to_transform", config.layers.empty() ? Json(nullptr) : Json(config.layers)},
                     {"lora_alpha", config.alpha == std::floor(config.alpha) ? Json(static_cast<std::int64_t>(config.alpha)) : Json(config.alpha)},
                     {"lora_dropout", config.dropout},
                     {"modules_to_save", config.modules_to_save.empty() ? Json(nullptr) : module_list({kEmbeddingModule, kHeadModule}, config.modules_to_save)},
                     {"peft_type", "LORA"},
                     {"r", config.rank},
                     {"rank_pattern", pattern_object(config.rank_pattern)},
                     {"revision", nullptr},
                     {"target_modules", targets},
                     {"task_type", "CAUSAL_LM"},
                     {"use_dora", config.dora},
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
    const std::int64_t rank = config.rank_of(matrix.module);
    tensors.push_back({{lora_a_name(matrix.module), Dtype::f32, {rank, matrix.in}}, matrix.a});
    tensors.push_back({{lora_b_name(matrix.module), Dtype::f32, {matrix.out, rank}}, matrix.b});
    if (config.dora) tensors.push_back({{lora_magnitude_name(matrix.module), Dtype::f32, {matrix.out}}, matrix.magnitude});
  }
  for (const SavedMatrix& matrix : saved) tensors.push_back({{saved_module_name(matrix.module), Dtype::f32, {matrix.rows, matrix.cols}}, matrix.values});
  write_safetensors(dir / kWeightsName, tensors, {{"format", "pt"}});
}

}  // namespace engine
