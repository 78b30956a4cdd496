#include "formats/merge_adapter.h"

#include <algorithm>

#include "core/error.h"
#include "core/staged_output.h"
#include "formats/plain_weights.h"

namespace engine {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 22;  // weights at a time: 16 MiB as f32

Json merged_config(const Json& base, Dtype dtype, bool untied) {
  Json config = base;
  if (untied) config["tie_word_embeddings"] = false;
  config.erase("quantization_config");
  const bool new_style = config.contains("dtype");
  if (new_style) config["dtype"] = torch_name(dtype);
  if (!new_style || config.contains("torch_dtype")) config["torch_dtype"] = torch_name(dtype);
  return config;
}

}  // namespace

MergedModel merge_adapter(const Exec& ex, const std::filesystem::path& model_dir, const std::filesystem::path& adapter_dir,
                          const std::filesystem::path& out_dir, const MergeOptions& options) {
  StagedDirectory staged(out_dir, options.if_exists);
  const HfFolder model(model_dir);
  if (const auto quantization = model.config().find("quantization_config"); quantization != model.config().end()) read_quantization_config(model.config());
  const PeftAdapter adapter(adapter_dir);
  const PlainWeights weights(model, &adapter);

  std::vector<TensorGroup> groups;
  std::int64_t total = 0;
  Dtype model_dtype = Dtype::bf16;
  for (const PlainWeight& weight : weights.list()) {
    if (weight.update != nullptr) model_dtype = weight.dtype;
    total += element_count(weight.shape) * dtype_size(weight.dtype);
    groups.push_back({{{weight.name(), weight.dtype, weight.shape}}, {}});
  }

  MergedModel result;
  result.base = weights.any_nf4() ? "nf4_dequantized" : "stored";
  ModelWriter out(staged.path(), groups, {{"format", "pt"}, {"merged_into", result.base}}, options.max_shard_bytes);
  std::int64_t done = 0;
  const auto report = [&](std::int64_t bytes) {
    done += bytes;
    if (options.progress) options.progress(done, total);
    check_cancelled(options.cancel);
  };
  std::vector<float> values;
  std::vector<std::uint8_t> narrow;
  for (const PlainWeight& weight : weights.list()) {
    if (weight.as_stored()) {
      out.copy(model, *weight.stored, report);
      continue;
    }
    const std::int64_t all_rows = weight.rows(), step = std::max<std::int64_t>(1, kChunk / weight.cols());
    for (std::int64_t row = 0; row < all_rows; row += step) {
      const std::int64_t rows = std::min(step, all_rows - row), count = rows * weight.cols();
      values.resize(static_cast<std::size_t>(count));
      weights.read_rows(ex, weight, row, rows, values.data());
      narrow.resize(static_cast<std::size_t>(count * dtype_size(weight.dtype)));
      from_f32(weight.dtype, values.data(), count, narrow.data());
      out.append(weight.name(), narrow.data(), static_cast<std::int64_t>(narrow.size()));
      report(static_cast<std::int64_t>(narrow.size()));
    }
    weights.release(weight);
  }
  out.finish();
  write_file(staged / "config.json", merged_config(model.config(), model_dtype, weights.unties_head()).dump(2) + "\n");
  copy_companion_files(model_dir, staged.path());
  check_cancelled(options.cancel);
  staged.commit();
  result.weight_bytes = out.weight_bytes();
  return result;
}

}  // namespace engine
