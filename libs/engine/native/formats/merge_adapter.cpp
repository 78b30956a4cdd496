#include "formats/merge_adapter.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "core/error.h"
#include "core/staged_output.h"
#include "formats/bnb_nf4.h"
#include "formats/peft_adapter.h"
#include "ops/gemm.h"
#include "ops/nf4.h"

namespace engine {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 22;  // weights at a time: 16 MiB as f32
constexpr std::string_view kWeight = ".weight";

// One tensor of the base, wherever its numbers come from.
struct BaseMatrix {
  const TensorView& stored;
  std::optional<Nf4Stored> nf4;
  Dtype dtype;  // of the output

  BaseMatrix(const HfFolder& model, const TensorView& tensor)
      : stored(tensor), nf4(find_nf4(model, tensor.name)), dtype(nf4 ? nf4->dtype : tensor.dtype) {}

  // Values [first, first + count) of the flattened matrix as f32, rounded to `dtype`.
  void read(std::int64_t first, std::int64_t count, float* out, std::vector<std::uint8_t>& narrow) const {
    if (!nf4) {
      to_f32(dtype, stored.data + first * dtype_size(dtype), count, out);
      return;
    }
    const Nf4Scales scales = nf4->double_quant
                                 ? Nf4Scales{nullptr, nf4->absmax_codes, nf4->nested.map.data(), nf4->nested.absmax.data(), nf4->nested.offset}
                                 : Nf4Scales{.absmax = nf4->absmax.data()};
    dequantize_nf4(nf4->codes, scales, first, count, out);
    if (dtype == Dtype::f32) return;
    narrow.resize(static_cast<std::size_t>(count * dtype_size(dtype)));
    from_f32(dtype, out, count, narrow.data());
    to_f32(dtype, narrow.data(), count, out);
  }
};

std::vector<float> as_f32(const TensorView& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
  return values;
}

// The adapter's pairs by the name of the weight they add to, each checked against the base.
std::map<std::string, const AdapterPair*, std::less<>> match(const HfFolder& model, const PeftAdapter& adapter) {
  std::map<std::string, const AdapterPair*, std::less<>> by_weight;
  for (const AdapterPair& pair : adapter.pairs()) {
    const std::string name = pair.module + std::string(kWeight);
    const TensorView* weight = model.find(name);
    require(Code::corrupt, weight != nullptr, "the adapter changes ", pair.module, ", which the base does not have");
    const auto nf4 = find_nf4(model, name);
    require(Code::corrupt, nf4 || weight->shape.size() == 2, name, " is not a matrix");
    const std::int64_t rows = nf4 ? nf4->rows : weight->shape[0], cols = nf4 ? nf4->cols : weight->shape[1];
    require(Code::corrupt, pair.a->shape[1] == cols && pair.b->shape[0] == rows, "the adapter's matrices for ", pair.module, " are for [", pair.b->shape[0],
            ", ", pair.a->shape[1], "], but the base's weight is [", rows, ", ", cols, "]: it was trained on another base");
    by_weight.emplace(name, &pair);
  }
  return by_weight;
}

Json merged_config(const Json& base, Dtype dtype) {
  Json config = base;
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
  const auto updates = match(model, adapter);

  std::vector<TensorGroup> groups;
  std::int64_t total = 0;
  bool any_nf4 = false;
  Dtype model_dtype = Dtype::bf16;
  for (const TensorView* tensor : model.tensors()) {
    if (is_nf4_part(model, tensor->name)) continue;
    const BaseMatrix base(model, *tensor);
    TensorSpec spec{tensor->name, base.dtype, base.nf4 ? std::vector<std::int64_t>{base.nf4->rows, base.nf4->cols} : tensor->shape};
    any_nf4 = any_nf4 || base.nf4.has_value();
    if (updates.contains(tensor->name)) {
      require(Code::unsupported, is_float_weight(base.dtype), tensor->name, " is stored as ", dtype_name(base.dtype), "; f32, f16 and bf16 can be merged");
      model_dtype = base.dtype;
    }
    total += element_count(spec.shape) * dtype_size(spec.dtype);
    groups.push_back({{std::move(spec)}, {}});
  }

  MergedModel result;
  result.base = any_nf4 ? "nf4_dequantized" : "stored";
  ModelWriter out(staged.path(), groups, {{"format", "pt"}, {"merged_into", result.base}}, options.max_shard_bytes);
  std::int64_t done = 0;
  const auto report = [&](std::int64_t bytes) {
    done += bytes;
    if (options.progress) options.progress(done, total);
    check_cancelled(options.cancel);
  };
  const Exec exact{ex.pool, ex.isa, Compute::f32};  // the update is small beside the weight: rounding its factors would cost it bits
  std::vector<float> values;
  std::vector<std::uint8_t> narrow;
  for (const TensorView* tensor : model.tensors()) {
    if (is_nf4_part(model, tensor->name)) continue;
    const BaseMatrix base(model, *tensor);
    const auto update = updates.find(tensor->name);
    const bool changed = update != updates.end();
    if (!base.nf4 && !changed) {
      out.copy(model, *tensor, report);
      continue;
    }
    const std::int64_t all_rows = base.nf4 ? base.nf4->rows : tensor->shape[0], cols = base.nf4 ? base.nf4->cols : tensor->shape[1];
    const std::vector<float> a = changed ? as_f32(*update->second->a) : std::vector<float>{};
    const std::vector<float> b = changed ? as_f32(*update->second->b) : std::vector<float>{};
    const std::int64_t rank = adapter.config().rank;
    const std::int64_t step = std::max<std::int64_t>(1, kChunk / cols);
    for (std::int64_t row = 0; row < all_rows; row += step) {
      const std::int64_t rows = std::min(step, all_rows - row), count = rows * cols;
      values.resize(static_cast<std::size_t>(count));
      base.read(row * cols, count, values.data(), narrow);
      if (changed)
        gemm_nn(exact, {b.data() + row * rank, rows, rank}, {a.data(), rank, cols}, {values.data(), rows, cols},
                static_cast<float>(adapter.config().scale()), true);
      narrow.resize(static_cast<std::size_t>(count * dtype_size(base.dtype)));
      from_f32(base.dtype, values.data(), count, narrow.data());
      out.append(tensor->name, narrow.data(), static_cast<std::int64_t>(narrow.size()));
      report(static_cast<std::int64_t>(narrow.size()));
    }
    model.release(*tensor);
  }
  out.finish();
  write_file(staged / "config.json", merged_config(model.config(), model_dtype).dump(2) + "\n");
  copy_companion_files(model_dir, staged.path());
  check_cancelled(options.cancel);
  staged.commit();
  result.weight_bytes = out.weight_bytes();
  return result;
}

}  // namespace engine
