// model_writer.h: writes the weights of a model folder: one model.safetensors, or shards and their index when it would be larger.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/hf_folder.h"

namespace engine {

inline constexpr std::int64_t kMaxShardBytes = std::int64_t{4} << 30;

// Tensors that must be in the same shard, in the order of the model: a weight and its scales.
struct TensorGroup {
  std::vector<TensorSpec> specs;
  std::vector<LateTensorSpec> late;
};

class ModelWriter {
 public:
  // Opens every shard under `dir` (a StagedDirectory's). A group larger than `max_shard_bytes` gets a shard of its own.
  ModelWriter(const std::filesystem::path& dir, const std::vector<TensorGroup>& groups, const Metadata& metadata,
              std::int64_t max_shard_bytes = kMaxShardBytes);

  void append(std::string_view name, const void* data, std::int64_t bytes);  // as SafetensorsWriter
  void append_late(std::string_view name, std::string_view bytes);
  // Copies a whole tensor of `from` in pieces, dropping its pages as it goes; `written(bytes)` after each piece.
  void copy(const HfFolder& from, const TensorView& tensor, const std::function<void(std::int64_t)>& written);
  // Finishes the shards and writes the index if there is more than one.
  void finish();

  std::int64_t weight_bytes() const noexcept;
  std::int64_t tensors() const noexcept { return static_cast<std::int64_t>(shard_of_.size()); }

 private:
  SafetensorsWriter& shard(std::string_view name);

  std::filesystem::path dir_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<SafetensorsWriter>> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
};

}  // namespace engine
