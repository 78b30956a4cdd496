// hf_folder.h: a model in Hugging Face layout: config.json and model.safetensors, or shards named by model.safetensors.index.json.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "formats/safetensors.h"

namespace engine {

// Opens (maps) every shard; the tensors are borrowed from it.
class HfFolder {
 public:
  // Throws io when a file is missing, corrupt when a file breaks its format, when the index and the shards do not name exactly the same tensors or
  // a shard's name leads outside the folder, unsupported when the weights are only there as a pickle (.bin, .pt, .pth, …), which is never opened.
  explicit HfFolder(const std::filesystem::path& dir);

  const std::filesystem::path& dir() const noexcept { return dir_; }
  const Json& config() const noexcept { return config_; }
  const std::vector<SafetensorsFile>& shards() const noexcept { return shards_; }
  const std::vector<const TensorView*>& tensors() const noexcept { return tensors_; }  // shard by shard, in file order
  const TensorView* find(std::string_view name) const;  // nullptr when absent
  const TensorView& at(std::string_view name) const;    // throws corrupt when absent
  std::int64_t weight_bytes() const noexcept;           // of all tensors as stored
  // Drops the tensor's pages, or those of bytes [first, first + count) of it, from this process after a streaming pass.
  void release(const TensorView& tensor) const noexcept { release(tensor, 0, tensor.bytes); }
  void release(const TensorView& tensor, std::int64_t first, std::int64_t count) const noexcept;

 private:
  std::filesystem::path dir_;
  Json config_;
  std::vector<SafetensorsFile> shards_;
  std::vector<const TensorView*> tensors_;
  std::unordered_map<std::string_view, const TensorView*> by_name_;
  std::unordered_map<const TensorView*, const SafetensorsFile*> owner_;
};

// Names of the files beside the weights that belong to the model: tokenizer, chat template, generation defaults, licence.
bool is_companion_file(std::string_view name);

// Copies every companion file of `from` that exists into `to`. Throws io.
void copy_companion_files(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace engine
