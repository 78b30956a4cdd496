#include "formats/quantize_model.h"

#include <algorithm>
#include <set>

#include "core/code_tables.h"
#include "core/error.h"
#include "core/staged_output.h"
#include "formats/bnb_nf4.h"
#include "ops/nf4.h"

namespace engine {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 22;  // weights at a time: 16 MiB as f32; a multiple of the block
static_assert(kChunk % kNf4Block == 0);

TensorGroup quantized_group(const TensorView& weight, bool double_quant) {
  const std::int64_t n = weight.elements(), blocks = nf4_blocks(n);
  const auto named = [&](const char* suffix) { return weight.name + suffix; };
  TensorGroup group;
  group.specs = {{weight.name, Dtype::u8, {nf4_bytes(n), 1}}, {named(".quant_map"), Dtype::f32, {16}}};
  if (double_quant) {
    group.specs.push_back({named(".absmax"), Dtype::u8, {blocks}});
    group.specs.push_back({named(".nested_absmax"), Dtype::f32, {(blocks + kNestedBlock - 1) / kNestedBlock}});
    group.specs.push_back({named(".nested_quant_map"), Dtype::f32, {256}});
  } else {
    group.specs.push_back({named(".absmax"), Dtype::f32, {blocks}});
  }
  group.late = {{quant_state_name(weight.name), 512}};
  return group;
}

class Progress {
 public:
  Progress(const QuantizeOptions& options, std::int64_t total) : options_(options), total_(total) {}
  void add(std::int64_t bytes) {
    done_ += bytes;
    if (options_.progress) options_.progress(done_, total_);
    check_cancelled(options_.cancel);
  }

 private:
  const QuantizeOptions& options_;
  std::int64_t done_ = 0, total_;
};

void write_quantized(const Exec& ex, const HfFolder& model, const TensorView& weight, bool double_quant, ModelWriter& out, Progress& progress) {
  const std::int64_t n = weight.elements(), width = dtype_size(weight.dtype);
  std::vector<float> values(static_cast<std::size_t>(std::min(n, kChunk)));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(nf4_bytes(std::min(n, kChunk))));
  std::vector<float> absmax(static_cast<std::size_t>(nf4_blocks(n)));
  for (std::int64_t first = 0; first < n; first += kChunk) {
    const std::int64_t count = std::min(kChunk, n - first);
    to_f32(weight.dtype, weight.data + first * width, count, values.data());
    try {
      quantize_nf4(ex, values.data(), count, codes.data(), absmax.data() + first / kNf4Block);
    } catch (const Error& error) {
      if (error.code() != Code::invalid) throw;
      fail(Code::corrupt, weight.name, ": ", error.message());
    }
    out.append(weight.name, codes.data(), nf4_bytes(count));
    model.release(weight, first * width, count * width);
    progress.add(count * width);
  }
  const auto blocks = static_cast<std::int64_t>(absmax.size());
  out.append(weight.name + ".quant_map", kNf4.data(), 64);
  std::optional<float> offset;
  if (double_quant) {
    const DoubleQuantized scales = double_quantize(absmax.data(), blocks);
    offset = scales.offset;
    out.append(weight.name + ".absmax", scales.codes.data(), blocks);
    out.append(weight.name + ".nested_absmax", scales.nested_absmax.data(), static_cast<std::int64_t>(scales.nested_absmax.size()) * 4);
    out.append(weight.name + ".nested_quant_map", kDynamicSigned.data(), 1024);
  } else {
    out.append(weight.name + ".absmax", absmax.data(), blocks * 4);
  }
  out.append_late(quant_state_name(weight.name), nf4_quant_state(weight.shape[0], weight.shape[1], weight.dtype, offset));
}

// Whether an entry of skip_modules names the module: all of its path, a beginning, or the last parts.
bool names_module(std::string_view entry, std::string_view module) {
  if (entry.empty() || entry.size() > module.size()) return false;
  if (entry.size() == module.size()) return entry == module;
  return (module.starts_with(entry) && module[entry.size()] == '.') || (module.ends_with(entry) && module[module.size() - entry.size() - 1] == '.');
}

// The linears of the blocks that stay as they are. Throws invalid for an entry that names none.
std::set<std::string_view> kept_weights(const HfFolder& model, const std::vector<std::string>& skip) {
  std::set<std::string_view> kept;
  for (const std::string& entry : skip) {
    bool found = entry == "lm_head";  // never quantized here
    for (const TensorView* tensor : model.tensors()) {
      if (!is_block_linear(tensor->name)) continue;
      const std::string_view weight = tensor->name;
      if (!names_module(entry, weight.substr(0, weight.size() - std::string_view(".weight").size()))) continue;
      found = true;
      kept.insert(weight);
    }
    require(found, "skip_modules names \"", entry.substr(0, 120), "\", which is no linear of the model's blocks");
  }
  return kept;
}

// llm_int8_skip_modules: null when all linears are quantized, which transformers reads as "all but the head".
std::vector<std::string> skip_list(const std::set<std::string_view>& kept) {
  std::vector<std::string> list;
  if (kept.empty()) return list;
  list.emplace_back("lm_head");
  for (const std::string_view weight : kept) list.emplace_back(weight.substr(0, weight.size() - std::string_view(".weight").size()));
  return list;
}

bool becomes_nf4(const TensorView& tensor, const std::set<std::string_view>& kept) {
  if (!is_block_linear(tensor.name) || kept.contains(tensor.name)) return false;
  require(Code::unsupported, is_float_weight(tensor.dtype), tensor.name, " is stored as ", dtype_name(tensor.dtype), "; f32, f16 and bf16 can be quantized");
  require(Code::corrupt, tensor.shape.size() == 2 && tensor.elements() > 0, tensor.name, " is not a matrix");
  require(Code::unsupported, tensor.elements() % 2 == 0, tensor.name, " has an odd number of weights");
  return true;
}

}  // namespace

bool is_block_linear(std::string_view name) { return name.starts_with("model.layers.") && name.ends_with("_proj.weight"); }

QuantizedModel quantize_model(const Exec& ex, const std::filesystem::path& model_dir, const std::filesystem::path& out_dir, const QuantizeOptions& options) {
  StagedDirectory staged(out_dir, options.if_exists);
  const HfFolder model(model_dir);
  require(Code::unsupported, !model.config().contains("quantization_config") || model.config()["quantization_config"].is_null(), model_dir.string(),
          " is already quantized; quantize the 16-bit model");

  const std::set<std::string_view> kept = kept_weights(model, options.skip_modules);

  QuantizedModel result;
  std::vector<TensorGroup> groups;
  Dtype compute = Dtype::bf16;
  for (const TensorView* tensor : model.tensors()) {
    if (becomes_nf4(*tensor, kept)) {
      groups.push_back(quantized_group(*tensor, options.double_quant));
      compute = tensor->dtype;
      ++result.quantized;
    } else {
      groups.push_back({{{tensor->name, tensor->dtype, tensor->shape}}, {}});
    }
  }
  require(Code::unsupported, result.quantized > 0, model_dir.string(), " has no linear of the form model.layers.N.….…_proj.weight to quantize");

  ModelWriter out(staged.path(), groups, {{"format", "pt"}}, options.max_shard_bytes);
  Progress progress(options, model.weight_bytes());
  for (const TensorView* tensor : model.tensors()) {
    if (becomes_nf4(*tensor, kept)) {
      write_quantized(ex, model, *tensor, options.double_quant, out, progress);
    } else {
      out.copy(model, *tensor, [&](std::int64_t bytes) { progress.add(bytes); });
    }
  }
  out.finish();
  Json config = model.config();
  config["quantization_config"] = nf4_quantization_config(compute, options.double_quant, skip_list(kept));
  write_file(staged / "config.json", config.dump(2) + "\n");
  copy_companion_files(model_dir, staged.path());
  check_cancelled(options.cancel);
  staged.commit();
  result.weight_bytes = out.weight_bytes();
  result.tensors = out.tensors();
  return result;
}

}  // namespace engine
