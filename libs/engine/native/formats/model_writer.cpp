#include "formats/model_writer.h"

#include <algorithm>
#include <cstdio>

#include "core/error.h"
#include "core/json.h"
#include "core/staged_output.h"

namespace engine {
namespace {

std::int64_t group_bytes(const TensorGroup& group) {
  std::int64_t bytes = 0;
  for (const TensorSpec& spec : group.specs) bytes += element_count(spec.shape) * dtype_size(spec.dtype);
  for (const LateTensorSpec& spec : group.late) bytes += spec.max_bytes;
  return bytes;
}

// "model-00002-of-00003.safetensors", as transformers names shards.
std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

}  // namespace

ModelWriter::ModelWriter(const std::filesystem::path& dir, const std::vector<TensorGroup>& groups, const Metadata& metadata, std::int64_t max_shard_bytes)
    : dir_(dir) {
  std::vector<TensorGroup> shards(1);
  std::int64_t filled = 0;
  for (const TensorGroup& group : groups) {
    const std::int64_t bytes = group_bytes(group);
    if (filled > 0 && bytes > max_shard_bytes - filled) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    TensorGroup& shard = shards.back();
    shard.specs.insert(shard.specs.end(), group.specs.begin(), group.specs.end());
    shard.late.insert(shard.late.end(), group.late.begin(), group.late.end());
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const TensorSpec& spec : shards[i].specs) require(shard_of_.emplace(spec.name, i).second, "two tensors are named \"", spec.name, "\"");
    for (const LateTensorSpec& spec : shards[i].late) require(shard_of_.emplace(spec.name, i).second, "two tensors are named \"", spec.name, "\"");
    names_.push_back(shard_name(i, shards.size()));
    shards_.push_back(std::make_unique<SafetensorsWriter>(dir_ / names_[i], std::move(shards[i].specs), metadata, shards[i].late));
  }
}

SafetensorsWriter& ModelWriter::shard(std::string_view name) {
  const auto found = shard_of_.find(name);
  require(found != shard_of_.end(), "no tensor \"", name, "\" was announced");
  return *shards_[found->second];
}

void ModelWriter::append(std::string_view name, const void* data, std::int64_t bytes) { shard(name).append(name, data, bytes); }
void ModelWriter::append_late(std::string_view name, std::string_view bytes) { shard(name).append_late(name, bytes); }

void ModelWriter::copy(const HfFolder& from, const TensorView& tensor, const std::function<void(std::int64_t)>& written) {
  constexpr std::int64_t kPiece = std::int64_t{16} << 20;
  for (std::int64_t first = 0; first < tensor.bytes; first += kPiece) {
    const std::int64_t bytes = std::min(kPiece, tensor.bytes - first);
    append(tensor.name, tensor.data + first, bytes);
    from.release(tensor, first, bytes);
    written(bytes);
  }
}

std::int64_t ModelWriter::weight_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const auto& shard : shards_) bytes += shard->data_bytes();
  return bytes;
}

void ModelWriter::finish() {
  for (const auto& shard : shards_) shard->finish();
  if (shards_.size() == 1) return;
  Json weight_map = Json::object();
  auto& members = weight_map.get_ref<Json::object_t&>();
  for (const auto& [name, index] : shard_of_)
    members.std::vector<Json::object_t::value_type, Json::object_t::allocator_type>::emplace_back(name, names_[index]);
  const Json index = {{"metadata", {{"total_size", weight_bytes()}}}, {"weight_map", std::move(weight_map)}};
  write_file(dir_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace engine
