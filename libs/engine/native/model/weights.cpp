#include "model/weights.h"

#include <cstring>
#include <string_view>
#include <unordered_set>

#include "core/code_tables.h"
#include "core/error.h"
#include "ops/linear.h"
#include "ops/nf4.h"

namespace engine {
namespace {

constexpr std::string_view kHead = "lm_head.weight";

// Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
bool is_derived_buffer(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

// A tied model may store its head too, as long as it is the embedding table.
void check_stored_head(const HfFolder& folder, const TensorView& head) {
  const TensorView& table = folder.at("model.embed_tokens.weight");
  require(Code::corrupt, head.dtype == table.dtype && head.shape == table.shape && std::memcmp(head.data, table.data, static_cast<std::size_t>(table.bytes)) == 0,
          "config.json ties lm_head to the embeddings, but lm_head.weight is stored and differs from them");
}

void refuse_unexpected(const ModelSpec& spec, const HfFolder& folder) {
  std::unordered_set<std::string> expected;
  for (const ParameterSpec& parameter : parameters_of(spec)) expected.insert(parameter.name);
  std::string unexpected;
  int count = 0;
  for (const TensorView* tensor : folder.tensors()) {
    if (expected.contains(tensor->name) || is_nf4_part(folder, tensor->name) || is_derived_buffer(tensor->name)) continue;
    if (spec.tied && tensor->name == kHead) {
      check_stored_head(folder, *tensor);
      continue;
    }
    if (++count <= 3) unexpected += (count == 1 ? "" : ", ") + tensor->name;
  }
  require(Code::corrupt, count == 0, "the folder has ", count, " tensors that a ", spec.model_type, " model of this config.json does not have: ", unexpected,
          count > 3 ? ", …" : "");
}

}  // namespace

void check_tensors(const ModelSpec& spec, const HfFolder& folder) {
  std::string missing;
  int count = 0;
  for (const ParameterSpec& parameter : parameters_of(spec))
    if (folder.find(parameter.name) == nullptr && ++count <= 3) missing += (count == 1 ? "" : ", ") + parameter.name;
  require(Code::corrupt, count == 0, "the folder lacks ", count, " tensors that config.json calls for: ", missing, count > 3 ? ", …" : "");
  refuse_unexpected(spec, folder);
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    const TensorView& tensor = folder.at(parameter.name);
    const auto check_shape = [&](const std::vector<std::int64_t>& shape) {
      require(Code::corrupt, shape == parameter.shape, parameter.name, " is ", shape_text(shape), ", but config.json calls for ", shape_text(parameter.shape));
    };
    if (const auto nf4 = find_nf4(folder, parameter.name)) {
      require(Code::unsupported, parameter.shape.size() == 2 && parameter.name != "model.embed_tokens.weight", parameter.name,
              " is stored as NF4; this engine reads NF4 linears only");
      check_shape({nf4->rows, nf4->cols});
      continue;
    }
    require(Code::unsupported, is_float_weight(tensor.dtype), parameter.name, " is stored as ", dtype_name(tensor.dtype),
            "; this engine reads F32, F16, BF16 and bitsandbytes NF4");
    check_shape(tensor.shape);
  }
}

ParameterSlot find_slot(const ModelSpec& spec, DecoderWeights& weights, const std::string& name) {
  weights.layers.resize(static_cast<std::size_t>(spec.layers));
  if (name == "model.embed_tokens.weight") return {nullptr, &weights.embedding, false};
  if (name == "model.norm.weight") return {&weights.final_norm, nullptr, false};
  if (name == kHead) return {nullptr, &weights.head, false};
  constexpr std::string_view prefix = "model.layers.";
  require(Code::internal, name.starts_with(prefix), "no slot for ", name);
  const std::size_t dot = name.find('.', prefix.size());
  const std::int64_t index = std::stoll(name.substr(prefix.size(), dot - prefix.size()));
  LayerWeights& layer = weights.layers.at(static_cast<std::size_t>(index));
  const std::string_view rest = std::string_view(name).substr(dot + 1);
  for (int p = 0; p < kProjections; ++p) {
    const std::string_view path = projection_path(static_cast<Projection>(p));
    if (!rest.starts_with(path) || rest[path.size()] != '.') continue;
    LinearWeights& linear = layer.linear[static_cast<std::size_t>(p)];
    if (rest.ends_with(".bias")) return {&linear.bias, nullptr, false};
    return {nullptr, &linear.weight, true};
  }
  if (rest == "input_layernorm.weight") return {&layer.input_norm, nullptr, false};
  if (rest == "self_attn.q_norm.weight") return {&layer.q_norm, nullptr, false};
  if (rest == "self_attn.k_norm.weight") return {&layer.k_norm, nullptr, false};
  // The same name means the MLP's input norm in Llama and the attention's output norm where norms sit on both sides.
  if (rest == "post_attention_layernorm.weight") return {spec.sandwich_norms ? &layer.attention_norm : &layer.mlp_norm, nullptr, false};
  if (rest == "pre_feedforward_layernorm.weight") return {&layer.mlp_norm, nullptr, false};
  if (rest == "post_feedforward_layernorm.weight") return {&layer.mlp_output_norm, nullptr, false};
  fail(Code::internal, "no slot for ", name);
}

ModelWeights::ModelWeights(const ModelSpec& spec, const std::filesystem::path& dir, QuantizeOnLoad quantize, const Exec& ex, const CancelFlag* cancel)
    : folder_(std::make_unique<HfFolder>(dir)) {
  check_tensors(spec, *folder_);
  for (const ParameterSpec& parameter : parameters_of(spec)) {
    check_cancelled(cancel);
    const TensorView& tensor = folder_->at(parameter.name);
    const ParameterSlot slot = find_slot(spec, view_, parameter.name);
    if (slot.vector != nullptr) {
      load_vector(tensor, slot.vector);
    } else if (auto stored = find_nf4(*folder_, parameter.name)) {
      load_stored_nf4(std::move(*stored), parameter, slot.matrix);
    } else {
      load_matrix(*folder_, tensor, parameter, slot.block_linear && quantize == QuantizeOnLoad::nf4, ex, slot.matrix);
    }
  }
  stored_ = view_.embedding.dtype;
  if (spec.tied) view_.head = view_.embedding;
}

void ModelWeights::load_vector(const TensorView& tensor, const float** slot) {
  std::vector<float>& values = vectors_.emplace_back(static_cast<std::size_t>(tensor.elements()));
  to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
  *slot = values.data();
  bytes_ += tensor.elements() * 4;
}

void ModelWeights::load_stored_nf4(Nf4Stored stored, const ParameterSpec& parameter, Matrix* slot) {
  const Nf4Stored& kept = stored_nf4_.emplace_back(std::move(stored));
  *slot = {Dtype::nf4, parameter.shape[0], parameter.shape[1], kept.codes, {}};
  const std::int64_t blocks = kept.blocks();
  bytes_ += (kept.rows * kept.cols + 1) / 2;
  if (kept.double_quant) {
    slot->nf4 = {nullptr, kept.absmax_codes, kept.nested.map.data(), kept.nested.absmax.data(), kept.nested.offset};
    bytes_ += blocks + static_cast<std::int64_t>(kept.nested.absmax.size()) * 4;
  } else {
    slot->nf4.absmax = kept.absmax.data();
    bytes_ += blocks * 4;
  }
  quantized_ = true;
  double_quantized_ = double_quantized_ || kept.double_quant;
}

void ModelWeights::load_matrix(const HfFolder& folder, const TensorView& tensor, const ParameterSpec& parameter, bool may_quantize, const Exec& ex,
                               Matrix* slot) {
  *slot = {tensor.dtype, parameter.shape[0], parameter.shape[1], tensor.data, {}};
  if (!may_quantize) {
    bytes_ += tensor.bytes;
    return;
  }
  const std::int64_t count = tensor.elements();
  const std::vector<float> values = [&] {
    std::vector<float> wide(static_cast<std::size_t>(count));
    to_f32(tensor.dtype, tensor.data, count, wide.data());
    return wide;
  }();
  Nf4Owned& made = made_.emplace_back();
  made.packed.resize(static_cast<std::size_t>(nf4_bytes(count)));
  std::vector<float> absmax(static_cast<std::size_t>(nf4_blocks(count)));
  quantize_nf4(ex, values.data(), count, made.packed.data(), absmax.data());
  DoubleQuantized scales = double_quantize(absmax.data(), nf4_blocks(count));
  made.scale_codes = std::move(scales.codes);
  made.nested_absmax = std::move(scales.nested_absmax);
  slot->dtype = Dtype::nf4;
  slot->data = made.packed.data();
  slot->nf4 = {nullptr, made.scale_codes.data(), kDynamicSigned.data(), made.nested_absmax.data(), scales.offset};
  bytes_ += static_cast<std::int64_t>(made.packed.size() + made.scale_codes.size() + made.nested_absmax.size() * 4);
  quantized_ = double_quantized_ = true;
  folder.release(tensor);
}

}  // namespace engine
