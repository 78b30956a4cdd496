#include "train/full_parameters.h"

#include <algorithm>

#include "core/error.h"
#include "core/json.h"
#include "core/staged_output.h"
#include "formats/hf_folder.h"
#include "formats/safetensors.h"

namespace engine {
namespace {

constexpr std::int64_t kAlignment = 16;  // elements: 64 bytes
std::int64_t aligned(std::int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

std::vector<FullParameters::Entry> FullParameters::layout_of(const ModelSpec& spec) {
  std::vector<Entry> entries;
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    const std::int64_t offset = entries.empty() ? 0 : aligned(entries.back().offset + entries.back().size);
    entries.push_back({parameter, offset, element_count(parameter.shape)});
  }
  return entries;
}

std::int64_t FullParameters::size_of(const ModelSpec& spec) {
  const std::vector<Entry> entries = layout_of(spec);
  return aligned(entries.back().offset + entries.back().size);
}

FullParameters::FullParameters(const ModelSpec& spec, const DecoderWeights& base) : entries_(layout_of(spec)) {
  values_.assign(static_cast<std::size_t>(size_of(spec)), 0.0f);
  DecoderWeights source = base;  // views: a copy is cheap, and find_slot hands out places to write
  for (const Entry& entry : entries_) {
    const ParameterSlot from = find_slot(spec, source, entry.parameter.name), to = find_slot(spec, view_, entry.parameter.name);
    float* values = values_.data() + entry.offset;
    if (from.vector != nullptr) {
      std::copy_n(*from.vector, entry.size, values);
      *to.vector = values;
      continue;
    }
    require(Code::unsupported, from.matrix->dtype != Dtype::nf4, "full-parameter training needs 16- or 32-bit weights; ", entry.parameter.name,
            " is NF4: load the base unquantized, or train an adapter");
    to_f32(from.matrix->dtype, from.matrix->data, entry.size, values);
    *to.matrix = {Dtype::f32, from.matrix->rows, from.matrix->cols, values, {}};
  }
  if (spec.tied) view_.head = view_.embedding;
}

void write_model_folder(const std::filesystem::path& dir, const std::filesystem::path& base_dir, const FullParameters& parameters, Dtype dtype) {
  require(is_float_weight(dtype), "weights cannot be saved as ", dtype_name(dtype), "; use f32, f16 or bf16");
  Json config = read_json(base_dir / "config.json");
  for (const char* key : {"torch_dtype", "dtype"})
    if (config.contains(key)) config[key] = torch_name(dtype);
  write_file(dir / "config.json", config.dump(2) + "\n");

  std::vector<TensorSpec> specs;
  for (const auto& entry : parameters.entries()) specs.push_back({entry.parameter.name, dtype, entry.parameter.shape});
  SafetensorsWriter writer(dir / "model.safetensors", std::move(specs), {{"format", "pt"}});
  std::vector<std::uint8_t> bytes;
  for (const auto& entry : parameters.entries()) {
    bytes.resize(static_cast<std::size_t>(entry.size * dtype_size(dtype)));
    from_f32(dtype, parameters.data() + entry.offset, entry.size, bytes.data());
    writer.append(entry.parameter.name, bytes.data(), static_cast<std::int64_t>(bytes.size()));
  }
  writer.finish();
  copy_companion_files(base_dir, dir);
}

}  // namespace engine
