#include "formats/hf_folder.h"

#include <algorithm>
#include <array>
#include <map>

#include "core/error.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

bool is_pickle(const fs::path& path) {
  constexpr std::array<std::string_view, 6> kSuffixes = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"};
  const std::string suffix = path.extension().string();
  return std::find(kSuffixes.begin(), kSuffixes.end(), suffix) != kSuffixes.end();
}

[[noreturn]] void refuse_missing_weights(const fs::path& dir) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error))
    if (is_pickle(entry.path()))
      fail(Code::unsupported, dir.string(), " has weights only as ", entry.path().filename().string(),
           ": a pickle can run code when it is opened, so it is never read; convert the model to safetensors");
  fail(Code::io, dir.string(), " has neither ", kSingle, " nor ", kIndex);
}

// tensor name -> shard file name, from the index.
std::map<std::string, std::string, std::less<>> read_weight_map(const fs::path& path) {
  const Json index = read_json(path);
  const Json& weight_map = json_member(index, "weight_map", kIndex);
  require(Code::corrupt, weight_map.is_object(), kIndex, ": \"weight_map\" is ", weight_map.type_name(), ", not an object");
  std::map<std::string, std::string, std::less<>> result;
  for (const auto& [tensor, shard] : weight_map.items()) {
    require(Code::corrupt, shard.is_string(), kIndex, ": the shard of \"", tensor, "\" is not a string");
    const auto& name = shard.get_ref<const std::string&>();
    const bool plain = name.size() > 12 && name.ends_with(".safetensors") && name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    require(Code::corrupt, plain, kIndex, ": tensor \"", tensor, "\" is in a shard whose name is not that of a .safetensors file in this folder");
    result.emplace(tensor, name);
  }
  require(Code::corrupt, !result.empty(), kIndex, " names no tensor");
  return result;
}

}  // namespace

HfFolder::HfFolder(const fs::path& dir) : dir_(dir) {
  require(Code::io, fs::is_directory(dir), dir.string(), " is not a folder");
  require(Code::io, fs::exists(dir / "config.json"), dir.string(), " has no config.json; a model folder has config.json and safetensors files");
  config_ = read_json(dir / "config.json", {.max_bytes = 16'000'000});
  require(Code::corrupt, config_.is_object(), "config.json is not a JSON object");

  std::map<std::string, std::string, std::less<>> weight_map;
  std::vector<std::string> shard_names;
  if (fs::exists(dir / kIndex)) {
    weight_map = read_weight_map(dir / kIndex);
    for (const auto& [tensor, shard] : weight_map) shard_names.push_back(shard);
    std::sort(shard_names.begin(), shard_names.end());
    shard_names.erase(std::unique(shard_names.begin(), shard_names.end()), shard_names.end());
    require(Code::corrupt, !fs::exists(dir / kSingle) || std::binary_search(shard_names.begin(), shard_names.end(), std::string(kSingle)), dir.string(),
            " has both ", kSingle, " and an index that does not name it; keep one of them");
  } else if (fs::exists(dir / kSingle)) {
    shard_names.emplace_back(kSingle);
  } else {
    refuse_missing_weights(dir);
  }

  shards_.reserve(shard_names.size());
  for (const std::string& name : shard_names) {
    require(Code::io, fs::exists(dir / name), kIndex, " names the shard ", name, ", which is not in ", dir.string());
    shards_.emplace_back(dir / name);
  }
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    for (const TensorView& tensor : shards_[i].tensors()) {
      require(Code::corrupt, by_name_.emplace(tensor.name, &tensor).second, "tensor \"", tensor.name, "\" is in two shards of ", dir.string());
      if (!weight_map.empty()) {
        const auto mapped = weight_map.find(tensor.name);
        require(Code::corrupt, mapped != weight_map.end() && mapped->second == shard_names[i], "tensor \"", tensor.name, "\" is in ", shard_names[i], " but ",
                kIndex, mapped == weight_map.end() ? std::string(" does not name it") : text(" places it in ", mapped->second));
      }
      tensors_.push_back(&tensor);
      owner_.emplace(&tensor, &shards_[i]);
    }
  }
  for (const auto& [tensor, shard] : weight_map)
    require(Code::corrupt, by_name_.contains(tensor), kIndex, " places tensor \"", tensor, "\" in ", shard, ", which does not hold it");
  require(Code::corrupt, !tensors_.empty(), dir.string(), " holds no tensor");
}

const TensorView* HfFolder::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorView& HfFolder::at(std::string_view name) const {
  const TensorView* tensor = find(name);
  require(Code::corrupt, tensor != nullptr, dir_.string(), " has no tensor \"", name, "\"");
  return *tensor;
}

std::int64_t HfFolder::weight_bytes() const noexcept {
  std::int64_t sum = 0;
  for (const TensorView* tensor : tensors_) sum += tensor->bytes;
  return sum;
}

void HfFolder::release(const TensorView& tensor, std::int64_t first, std::int64_t count) const noexcept {
  const auto found = owner_.find(&tensor);
  if (found != owner_.end()) found->second->release(tensor, first, count);
}

bool is_companion_file(std::string_view name) {
  constexpr std::array<std::string_view, 14> kNames = {"tokenizer.json",       "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                                       "vocab.json",           "merges.txt",            "vocab.txt",               "tokenizer.model",
                                                       "spiece.model",         "generation_config.json", "chat_template.jinja",    "chat_template.json",
                                                       "preprocessor_config.json", "NOTICE"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.starts_with("LICENSE");
}

void copy_companion_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!is_companion_file(name) || !entry.is_regular_file()) continue;
    std::error_code error;
    fs::copy_file(entry.path(), to / name, error);
    require(Code::io, !error, "cannot copy ", entry.path().string(), ": ", error.message());
  }
}

}  // namespace engine
