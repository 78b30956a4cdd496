#include "formats/bnb_nf4.h"

#include <cmath>
#include <cstring>

#include "core/code_tables.h"
#include "core/error.h"

namespace engine {
namespace {

constexpr std::string_view kStateSuffix = ".quant_state.bitsandbytes__";

std::string part(std::string_view weight, std::string_view suffix) { return std::string(weight) + std::string(suffix); }

// A stored part that must be there with this type and this many elements.
const TensorView& expect(const HfFolder& folder, const std::string& name, Dtype dtype, std::int64_t count) {
  const TensorView& tensor = folder.at(name);
  require(Code::corrupt, tensor.dtype == dtype, "\"", name, "\" has type ", dtype_name(tensor.dtype), ", not ", dtype_name(dtype));
  require(Code::corrupt, tensor.elements() == count, "\"", name, "\" has ", tensor.elements(), " values, not ", count);
  return tensor;
}

void copy_finite(const TensorView& tensor, float* out) {
  to_f32(tensor.dtype, tensor.data, tensor.elements(), out);
  for (std::int64_t i = 0; i < tensor.elements(); ++i)
    require(Code::corrupt, std::isfinite(out[i]), "\"", tensor.name, "\" holds a value that is not finite");
}

Dtype dtype_from_torch(std::string_view name, std::string_view what) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32})
    if (torch_name(dtype) == name) return dtype;
  fail(Code::unsupported, what, ": the dtype \"", name.substr(0, 40), "\" is not bfloat16, float16 or float32");
}

// Any key of this weight's quant_state, whatever its type: "nf4", or "fp4" in a checkpoint we refuse.
const TensorView* find_state(const HfFolder& folder, std::string_view weight_name) {
  for (const char* type : {"nf4", "fp4"})
    if (const TensorView* state = folder.find(part(weight_name, kStateSuffix) + type)) return state;
  return nullptr;
}

}  // namespace

std::string quant_state_name(std::string_view weight_name) { return part(weight_name, kStateSuffix) + "nf4"; }

std::optional<Nf4Stored> find_nf4(const HfFolder& folder, std::string_view weight_name) {
  const TensorView* weight = folder.find(weight_name);
  const TensorView* state_tensor = find_state(folder, weight_name);
  if (weight == nullptr || state_tensor == nullptr) {
    require(Code::corrupt, state_tensor == nullptr, "\"", state_tensor == nullptr ? "" : state_tensor->name, "\" describes a weight that is not there");
    require(Code::corrupt, weight == nullptr || folder.find(part(weight_name, ".absmax")) == nullptr, "\"", weight_name,
            "\" has an absmax but no quant_state");
    return std::nullopt;
  }
  const std::string what = state_tensor->name;
  require(Code::corrupt, state_tensor->dtype == Dtype::u8, "\"", what, "\" is not u8");
  const Json state = parse_json({reinterpret_cast<const char*>(state_tensor->data), static_cast<std::size_t>(state_tensor->bytes)}, what,
                                {.max_bytes = 65'536, .max_depth = 4});
  const std::string type = json_string(state, "quant_type", what);
  require(Code::unsupported, type == "nf4", what, ": the quantization type is \"", type.substr(0, 40), "\"; only nf4 is supported");
  const std::int64_t block = json_int(state, "blocksize", what);
  require(Code::unsupported, block == kNf4Block, what, ": blocks of ", block, " values; only ", kNf4Block, " is supported");

  const Json& shape = json_member(state, "shape", what);
  require(Code::corrupt, shape.is_array() && shape.size() == 2 && shape[0].is_number_unsigned() && shape[1].is_number_unsigned(), what,
          ": \"shape\" is not [out, in]");
  Nf4Stored stored;
  std::int64_t count = 0;
  const auto rows = shape[0].get<std::uint64_t>(), cols = shape[1].get<std::uint64_t>();
  constexpr std::uint64_t kMaxSide = std::uint64_t{1} << 31;
  require(Code::corrupt, rows > 0 && cols > 0 && rows <= kMaxSide && cols <= kMaxSide, what, ": \"shape\" is out of range");
  stored.rows = static_cast<std::int64_t>(rows);
  stored.cols = static_cast<std::int64_t>(cols);
  count = stored.rows * stored.cols;
  require(Code::unsupported, count % 2 == 0, what, ": an odd number of weights (", count, ") is not supported");
  stored.dtype = dtype_from_torch(json_string(state, "dtype", what), what);
  stored.codes = expect(folder, std::string(weight_name), Dtype::u8, count / 2).data;

  std::array<float, 16> book{};
  copy_finite(expect(folder, part(weight_name, ".quant_map"), Dtype::f32, 16), book.data());
  require(Code::unsupported, book == kNf4, "\"", weight_name, ".quant_map\" is not the NF4 code book");

  stored.double_quant = folder.find(part(weight_name, ".nested_absmax")) != nullptr;
  const std::int64_t blocks = stored.blocks();
  if (!stored.double_quant) {
    require(Code::corrupt, !state.contains("nested_offset"), what, " tells of double quantization, but its nested_absmax is missing");
    stored.absmax.resize(static_cast<std::size_t>(blocks));
    copy_finite(expect(folder, part(weight_name, ".absmax"), Dtype::f32, blocks), stored.absmax.data());
    return stored;
  }
  const std::int64_t nested_block = json_int(state, "nested_blocksize", what);
  require(Code::unsupported, nested_block == kNestedBlock, what, ": nested blocks of ", nested_block, " values; only ", kNestedBlock, " is supported");
  const std::string nested_dtype = json_string(state, "nested_dtype", what);
  require(Code::unsupported, nested_dtype == "float32", what, ": nested scales of type \"", nested_dtype.substr(0, 40), "\"; only float32 is supported");
  stored.nested.offset = static_cast<float>(json_number(state, "nested_offset", what));
  require(Code::corrupt, std::isfinite(stored.nested.offset), what, ": \"nested_offset\" is not finite");
  stored.absmax_codes = expect(folder, part(weight_name, ".absmax"), Dtype::u8, blocks).data;
  const std::int64_t nested_blocks = (blocks + kNestedBlock - 1) / kNestedBlock;
  stored.nested.absmax.resize(static_cast<std::size_t>(nested_blocks));
  copy_finite(expect(folder, part(weight_name, ".nested_absmax"), Dtype::f32, nested_blocks), stored.nested.absmax.data());
  copy_finite(expect(folder, part(weight_name, ".nested_quant_map"), Dtype::f32, 256), stored.nested.map.data());
  return stored;
}

bool is_nf4_part(const HfFolder& folder, std::string_view name) {
  for (const std::string_view suffix : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"})
    if (name.ends_with(suffix) && find_state(folder, name.substr(0, name.size() - suffix.size())) != nullptr) return true;
  return name.find(kStateSuffix) != std::string_view::npos;
}

std::string nf4_quant_state(std::int64_t rows, std::int64_t cols, Dtype dtype, std::optional<float> nested_offset) {
  Json state = {{"quant_type", "nf4"}, {"blocksize", kNf4Block}, {"dtype", torch_name(dtype)}, {"shape", {rows, cols}}};
  if (nested_offset) {
    state["nested_blocksize"] = kNestedBlock;
    state["nested_dtype"] = "float32";
    state["nested_offset"] = static_cast<double>(*nested_offset);  // as Python prints the float32 widened to a float64
  }
  return dump_like_python(state);
}

Json nf4_quantization_config(Dtype compute_dtype, bool double_quant, const std::vector<std::string>& skipped) {
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", torch_name(compute_dtype)},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", double_quant},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", skipped.empty() ? Json(nullptr) : Json(skipped)},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

std::optional<QuantizationConfig> read_quantization_config(const Json& config) {
  constexpr std::string_view kWhat = "config.json's quantization_config";
  const auto found = config.find("quantization_config");
  if (found == config.end() || found->is_null()) return std::nullopt;
  const std::string method = json_string(*found, "quant_method", kWhat);
  require(Code::unsupported, method == "bitsandbytes", kWhat, ": the method is \"", method.substr(0, 40), "\"; only bitsandbytes NF4 is supported");
  require(Code::unsupported, find_json_bool(*found, "load_in_4bit", kWhat).value_or(false) || find_json_bool(*found, "_load_in_4bit", kWhat).value_or(false),
          kWhat, ": 8-bit weights are not supported; only 4-bit NF4 is");
  const std::string type = find_json_string(*found, "bnb_4bit_quant_type", kWhat).value_or("fp4");  // bitsandbytes' default
  require(Code::unsupported, type == "nf4", kWhat, ": the 4-bit type is \"", type.substr(0, 40), "\"; only nf4 is supported");
  const std::string storage = find_json_string(*found, "bnb_4bit_quant_storage", kWhat).value_or("uint8");
  require(Code::unsupported, storage == "uint8", kWhat, ": codes are stored as \"", storage.substr(0, 40), "\"; only uint8 is supported");
  return QuantizationConfig{find_json_bool(*found, "bnb_4bit_use_double_quant", kWhat).value_or(false)};
}

}  // namespace engine
