#include "formats/plain_weights.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/gemm.h"
#include "ops/nf4.h"

namespace engine {
namespace {

std::vector<float> as_f32(const TensorView& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
  return values;
}

// The adapter's pairs by the name of the weight they add to.
std::map<std::string, const AdapterPair*, std::less<>> updates_of(const HfFolder& model, const PeftAdapter* adapter) {
  std::map<std::string, const AdapterPair*, std::less<>> by_weight;
  if (adapter == nullptr) return by_weight;
  for (const AdapterPair& pair : adapter->pairs()) {
    const std::string name = pair.module + ".weight";
    require(Code::corrupt, model.find(name) != nullptr, "the adapter changes ", pair.module, ", which the base does not have");
    by_weight.emplace(name, &pair);
  }
  return by_weight;
}

void check_update(const PlainWeight& weight) {
  const AdapterPair& pair = *weight.update;
  require(Code::corrupt, weight.shape.size() == 2, weight.name(), " is not a matrix");
  require(Code::corrupt, pair.a->shape[1] == weight.shape[1] && pair.b->shape[0] == weight.shape[0], "the adapter's matrices for ", pair.module,
          " are for [", pair.b->shape[0], ", ", pair.a->shape[1], "], but the base's weight is [", weight.shape[0], ", ", weight.shape[1],
          "]: it was trained on another base");
  require(Code::unsupported, is_float_weight(weight.dtype), weight.name(), " is stored as ", dtype_name(weight.dtype), "; f32, f16 and bf16 can be merged");
}

// Values [first, first + count) of the flattened NF4 weight, rounded to the type it dequantizes to.
void read_nf4(const Nf4Stored& nf4, Dtype dtype, std::int64_t first, std::int64_t count, float* out) {
  const Nf4Scales scales = nf4.double_quant ? Nf4Scales{nullptr, nf4.absmax_codes, nf4.nested.map.data(), nf4.nested.absmax.data(), nf4.nested.offset}
                                            : Nf4Scales{.absmax = nf4.absmax.data()};
  dequantize_nf4(nf4.codes, scales, first, count, out);
  if (dtype == Dtype::f32) return;
  std::vector<std::uint8_t> narrow(static_cast<std::size_t>(count * dtype_size(dtype)));
  from_f32(dtype, out, count, narrow.data());
  to_f32(dtype, narrow.data(), count, out);
}

// Gives each row the length m; a row of zeros stays as it is.
void set_row_norms(Rows rows, const float* magnitude) {
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    float* row = rows.row(r);
    double sum = 0;
    for (std::int64_t c = 0; c < rows.cols; ++c) sum += double{row[c]} * row[c];
    const auto factor = static_cast<float>(sum > 0 ? magnitude[r] / std::sqrt(sum) : 0.0);
    for (std::int64_t c = 0; c < rows.cols; ++c) row[c] *= factor;
  }
}

}  // namespace

PlainWeights::PlainWeights(const HfFolder& model, const PeftAdapter* adapter) : model_(model), adapter_(adapter) {
  const auto updates = updates_of(model, adapter);
  for (const TensorView* tensor : model.tensors()) {
    if (is_nf4_part(model, tensor->name)) continue;
    PlainWeight weight{tensor, tensor->shape, tensor->dtype, find_nf4(model, tensor->name), nullptr};
    if (weight.nf4) {
      weight.shape = {weight.nf4->rows, weight.nf4->cols};
      weight.dtype = weight.nf4->dtype;
      any_nf4_ = true;
    }
    if (const auto update = updates.find(tensor->name); update != updates.end()) {
      weight.update = update->second;
      check_update(weight);
    }
    weights_.push_back(std::move(weight));
  }
  if (adapter != nullptr && (adapter->embedding() != nullptr || adapter->head() != nullptr)) take_whole_modules();
  for (std::size_t i = 0; i < weights_.size(); ++i) by_name_.emplace(weights_[i].name(), i);
}

void PlainWeights::take_whole_modules() {
  const auto find = [&](std::string_view name) {
    return std::find_if(weights_.begin(), weights_.end(), [&](const PlainWeight& weight) { return weight.name() == name; });
  };
  const std::string table_name = text(kEmbeddingPath, ".weight"), head_name = text(kHeadPath, ".weight");
  const auto table = find(table_name);
  require(Code::corrupt, table != weights_.end(), "the adapter trains whole modules, but the base has no ", table_name);
  unties_head_ = true;
  if (find(head_name) == weights_.end()) {
    PlainWeight head = *table;
    head.own_name = head_name;
    weights_.push_back(std::move(head));  // invalidates `table`
  }
  const auto replace = [&](const std::string& name, const TensorView* whole) {
    if (whole == nullptr) return;
    PlainWeight& weight = *find(name);
    require(Code::corrupt, whole->shape == weight.shape, "the adapter's ", whole->name, " does not have the shape of the base's ", name,
            ": it was trained on another base");
    require(Code::unsupported, is_float_weight(weight.dtype), name, " is stored as ", dtype_name(weight.dtype), "; f32, f16 and bf16 can be merged");
    weight.whole = whole;
    weight.nf4.reset();
  };
  replace(table_name, adapter_->embedding());
  replace(head_name, adapter_->head());
}

const PlainWeight& PlainWeights::at(std::string_view name) const {
  const auto found = by_name_.find(name);
  require(Code::corrupt, found != by_name_.end(), model_.dir().string(), " has no tensor \"", name, "\"");
  return weights_[found->second];
}

void PlainWeights::read_rows(const Exec& ex, const PlainWeight& weight, std::int64_t first, std::int64_t count, float* out) const {
  const std::int64_t cols = weight.cols();
  if (weight.whole != nullptr)
    to_f32(weight.whole->dtype, weight.whole->data + first * cols * dtype_size(weight.whole->dtype), count * cols, out);
  else if (weight.nf4)
    read_nf4(*weight.nf4, weight.dtype, first * cols, count * cols, out);
  else
    to_f32(weight.dtype, weight.stored->data + first * cols * dtype_size(weight.dtype), count * cols, out);
  if (weight.update == nullptr) return;
  if (factors_of_ != &weight) {
    factors_ = {as_f32(*weight.update->a), as_f32(*weight.update->b), adapter_->config().dora ? as_f32(*weight.update->magnitude) : std::vector<float>{}};
    factors_of_ = &weight;
  }
  const std::int64_t rank = adapter_->config().rank_of(weight.update->module);
  const Exec exact{ex.pool, ex.isa, Compute::f32};  // the update is small beside the weight: rounding its factors would cost it bits
  gemm_nn(exact, {factors_.b.data() + first * rank, count, rank}, {factors_.a.data(), rank, cols}, {out, count, cols},
          static_cast<float>(adapter_->config().scale_of(weight.update->module)), true);
  if (!factors_.magnitude.empty()) set_row_norms({out, count, cols}, factors_.magnitude.data() + first);
}

}  // namespace engine
