#include "cuda/infer/products.h"

#include <algorithm>

#include "cuda/ops/dora_rows.h"
#include "cuda/ops/glu.h"
#include "cuda/ops/head_gemv.h"
#include "cuda/ops/logits.h"
#include "cuda/ops/nf4.h"
#include "cuda/ops/rmsnorm.h"

namespace engine::cuda {

void decode_parts(const Nf4Parts& parts, const GroupShape& shape, bf16* to, cudaStream_t stream) {
  const View<bf16> all{to, shape.outputs, shape.inputs};
  for (std::size_t p = 0; p < shape.parts.size(); ++p) nf4_dequantize(parts[p], all.row_range(shape.parts[p].first_output, shape.parts[p].outputs), stream);
}

Products::Products(const ModelSpec& spec, const Geometry& geometry, const DeviceWeights& weights, const DecodedWeights& decoded, const AdapterCache& table,
                   const ProductBuffers& buffers, const Options& options)
    : spec_(spec), geometry_(geometry), weights_(weights), decoded_(decoded), table_(table), buffers_(buffers), options_(options),
      gemm_(options.order == SumOrder::same_for_any_rows ? GemmLibrary::none : GemmLibrary::automatic) {}

bool Products::reads_nf4(std::int64_t layer, Group group, std::int64_t rows) const noexcept {
  if (packed(layer, group).codes == nullptr) return false;
  return options_.order == SumOrder::same_for_any_rows || rows <= options_.crossover;
}

// Rows beyond which the library's product with the head is the faster one; where there is none, what the engine's kernel takes at once.
std::int64_t Products::head_crossover() const noexcept { return gemm_.library() == "mma" ? kHeadRows : kHeadCrossover; }

void Products::tune(std::int64_t rows, void* scratch, std::int64_t scratch_bytes, cudaStream_t stream) {
  for (const Group group : {Group::qkv, Group::o, Group::gate_up, Group::down}) {
    const std::int64_t n = geometry_[group].outputs, k = geometry_[group].inputs;
    if (reads_nf4(0, group, rows) || scratch_bytes < Gemm::tune_bytes(GemmForm::nt, rows, n, k, k, k, n, false)) continue;
    const bool onto = !spec_.sandwich_norms && (group == Group::o || group == Group::down);
    gemm_.tune(GemmForm::nt, rows, n, k, k, k, n, false, onto, weights_.layers[0].bias[static_cast<std::size_t>(group)] != nullptr, scratch, scratch_bytes, stream);
  }
  const std::int64_t n = spec_.vocab, k = spec_.hidden;
  if (rows > head_crossover() && scratch_bytes >= Gemm::tune_bytes(GemmForm::nt, rows, n, k, k, k, n, true))
    gemm_.tune(GemmForm::nt, rows, n, k, k, k, n, true, false, false, scratch, scratch_bytes, stream);
}

View<bf16> Products::normalize(View<bf16> x, const RmsNorm& norm) const {
  const View<bf16> normed{buffers_.normed, x.rows, x.cols};
  rmsnorm_forward(norm, x, {}, normed, nullptr, stream_);
  return normed;
}

RowAdapters Products::row_adapters(std::int64_t layer, Group group, const std::int32_t* of) const {
  return {table_.entries(layer, group), of, static_cast<std::int64_t>(geometry_[group].parts.size()), adapters_.ranks};
}

const PackedNf4& Products::packed(std::int64_t layer, Group group) const noexcept {
  return weights_.layers[static_cast<std::size_t>(layer)].packed[static_cast<std::size_t>(group)];
}

// Of rows `first` … of a step: shrinks them for their adapters, unless the product does.
GemvExtras Products::gemv_extras(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, std::int64_t first) const {
  GemvExtras extras;
  extras.norm = norm;
  extras.bias = weights_.layers[static_cast<std::size_t>(layer)].bias[static_cast<std::size_t>(group)];
  extras.workspace = buffers_.gemv_workspace;
  extras.same_order = options_.order == SumOrder::same_for_any_rows;
  if (adapters_.ranks == 0) return extras;
  extras.adapters = row_adapters(layer, group, adapters_.all + first);
  if (!extras.same_order && packed(layer, group).codes != nullptr && nf4_gemv_shrinks(x.rows, x.cols, extras.adapters)) return extras;  // the product does it
  const View<bf16> low{buffers_.low, x.rows, extras.adapters.parts * adapters_.ranks};
  lora_rows_shrink(x, norm, extras.adapters, low, stream_);
  extras.low = low;
  return extras;
}

View<const bf16> Products::decoded(std::int64_t layer, Group group) const {
  const GroupShape& shape = geometry_[group];
  const auto l = static_cast<std::size_t>(layer), g = static_cast<std::size_t>(group);
  if (weights_.layers[l].stored[g] != nullptr) return {weights_.layers[l].stored[g], shape.outputs, shape.inputs};
  if (!decoded_.empty()) return {decoded_[l][g], shape.outputs, shape.inputs};
  const View<bf16> scratch{buffers_.scratch, shape.outputs, shape.inputs};
  if (packed(layer, group).codes != nullptr)
    nf4_dequantize(packed(layer, group), scratch, stream_);
  else
    decode_parts(stored_parts(weights_.layers[l], shape), shape, scratch.data, stream_);
  return scratch;
}

// In a stream of its own, beside the product that reads x too: before that is given to the stream; what follows it waits for shrunk_.
View<bf16> Products::shrink_beside(View<const bf16> x, const RowAdapters& rows) {
  const View<bf16> low{buffers_.low, x.rows, rows.parts * adapters_.ranks};
  given_.record(stream_);
  given_.wait(beside_);
  lora_rows_shrink(x, {}, rows, low, beside_);                                                           // [R, parts · ranks]
  shrunk_.record(beside_);
  return low;
}

void Products::add_segments(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y) {
  for (const AdapterSegment& segment : adapters_.segments) {
    const AdapterGroup& at = segment.adapter->group(layer, group);
    if (at.a.rows == 0) continue;
    const View<bf16> low{buffers_.low, segment.count, at.a.rows};
    gemm_(GemmForm::nt, x.row_range(segment.first, segment.count), at.a, low, stream_);                  // [n, slots]
    for (const AdapterGroup::Part& part : at.parts)
      gemm_(GemmForm::nt, low.columns(part.first_slot, part.b.cols), part.b, y.row_range(segment.first, segment.count).columns(part.first_output, part.b.rows),
            stream_, 1.0f, 1.0f);                                                                        // [n, outputs]
  }
}

void Products::product(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y, Onto onto) {
  gemm_(GemmForm::nt, x, decoded(layer, group), y, stream_, 1.0f, onto == Onto::y ? 1.0f : 0.0f,
        weights_.layers[static_cast<std::size_t>(layer)].bias[static_cast<std::size_t>(group)]);         // [R, outputs]
}

void Products::multiply(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y, Onto onto) {
  const bool alike = options_.order == SumOrder::same_for_any_rows, by_row = adapters_.ranks > 0 && (alike || adapters_.any_other);
  const RowAdapters rows = row_adapters(layer, group, alike ? adapters_.all : adapters_.others);
  View<bf16> low;
  if (by_row) low = shrink_beside(x, rows);
  product(layer, group, x, y, onto);
  if (by_row) {
    shrunk_.wait(stream_);
    lora_rows_expand(low, rows, columns(group), y, stream_);                                             // [R, outputs]
  }
  if (adapters_.ranks > 0 && !alike) add_segments(layer, group, x, y);
}

RowFactors Products::row_factors(std::int64_t layer, Group group, std::int64_t first) const {
  return {table_.factors(layer, group), adapters_.all + first, static_cast<std::int64_t>(geometry_[group].parts.size())};
}

LoraColumns Products::columns(Group group) const {
  const GroupShape& shape = geometry_[group];
  LoraColumns columns{};
  for (std::size_t p = 0; p < shape.parts.size(); ++p) columns.first_output[p] = shape.parts[p].first_output;
  columns.first_output[shape.parts.size()] = shape.outputs;
  return columns;
}

void Products::operator()(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, View<bf16> y, Onto onto) {
  if (!adapters_.dora) return plain(layer, group, x, norm, y, onto);
  // Magnitudes scale the product alone: where it adds to y, their rows' y waits aside.
  const RowFactors factors = row_factors(layer, group, 0);
  View<bf16> aside;
  if (onto == Onto::y) {
    aside = {buffers_.normed, y.rows, y.cols};
    dora_rows_set_aside(factors, y, aside, stream_);
  }
  plain(layer, group, x, norm, y, onto);
  dora_rows_scale(factors, columns(group), weights_.layers[static_cast<std::size_t>(layer)].bias[static_cast<std::size_t>(group)], aside, y, stream_);
}

void Products::plain(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, View<bf16> y, Onto onto) {
  const bool reads = reads_nf4(layer, group, x.rows), early = norm.weight != nullptr && (!reads || x.rows > kGemvNormRows || options_.order == SumOrder::same_for_any_rows);
  if (early) x = normalize(x, norm);
  if (!reads) return multiply(layer, group, x, y, onto);
  for (std::int64_t first = 0; first < x.rows; first += kGemvRows) {
    const std::int64_t count = std::min(kGemvRows, x.rows - first);
    const View<bf16> rows = x.row_range(first, count), out = y.row_range(first, count);
    GemvExtras extras = gemv_extras(layer, group, rows, early ? RmsNorm{} : norm, first);
    if (onto == Onto::y) extras.residual = out;
    nf4_gemv(rows, packed(layer, group), out, extras, stream_);                                          // [n, outputs]
  }
}

void Products::gated(std::int64_t layer, View<bf16> x, const RmsNorm& norm, View<bf16> y) {
  const bool reads = reads_nf4(layer, Group::gate_up, x.rows), early = !reads || x.rows > kGemvNormRows || options_.order == SumOrder::same_for_any_rows;
  if (early) x = normalize(x, norm);
  if (!reads) {
    const View<bf16> both{buffers_.gate_up, x.rows, geometry_[Group::gate_up].outputs};
    if (adapters_.ranks > 0 && adapters_.segments.empty() && !adapters_.dora) {
      const RowAdapters rows = row_adapters(layer, Group::gate_up, adapters_.all);
      const View<bf16> low = shrink_beside(x, rows);
      product(layer, Group::gate_up, x, both, Onto::nothing);
      shrunk_.wait(stream_);
      return lora_rows_expand_gated(spec_.activation, low, rows, both, y, stream_);                      // [R, ffn]
    }
    multiply(layer, Group::gate_up, x, both, Onto::nothing);
    if (adapters_.dora)
      dora_rows_scale(row_factors(layer, Group::gate_up, 0), columns(Group::gate_up),
                      weights_.layers[static_cast<std::size_t>(layer)].bias[static_cast<std::size_t>(Group::gate_up)], {}, both, stream_);
    return glu_forward(spec_.activation, both, y, stream_);                                              // [R, ffn]
  }
  for (std::int64_t first = 0; first < x.rows; first += kGemvRows) {
    const std::int64_t count = std::min(kGemvRows, x.rows - first);
    const View<bf16> rows = x.row_range(first, count), out = y.row_range(first, count);
    const GemvExtras extras = gemv_extras(layer, Group::gate_up, rows, early ? RmsNorm{} : norm, first);
    if (!adapters_.dora || extras.same_order)
      nf4_gemv_gated(spec_.activation, rows, packed(layer, Group::gate_up), out, extras, stream_);       // [n, ffn]
    if (adapters_.dora) gate_up_tiles(layer, rows, extras, first, out);
  }
}

// Magnitudes come before the activation, which the gated product has behind it: gate and up as plain outputs, in the order of the tiles that hold them.
// Of the rows with magnitudes alone where the others' bits are not to depend on them.
void Products::gate_up_tiles(std::int64_t layer, View<bf16> x, const GemvExtras& extras, std::int64_t first, View<bf16> y) {
  const PackedNf4& weight = packed(layer, Group::gate_up);
  const View<bf16> tiles{buffers_.gate_up, x.rows, weight.outputs()};
  View<const bf16> low = extras.low;
  if (extras.adapters.entries != nullptr && low.data == nullptr) {
    const View<bf16> shrunk{buffers_.low, x.rows, extras.adapters.parts * adapters_.ranks};
    lora_rows_shrink(x, extras.norm, extras.adapters, shrunk, stream_);
    low = shrunk;
  }
  GemvExtras bare;
  bare.norm = extras.norm;
  bare.workspace = extras.workspace;
  bare.same_order = extras.same_order;
  nf4_gemv(x, nf4_tiles(weight), tiles, bare, stream_);                                                  // [n, 2 · ffn]
  dora_rows_gated(spec_.activation, {tiles, {weight.unit[0], weight.unit[1]}, extras.bias}, low, extras.adapters, row_factors(layer, Group::gate_up, first),
                  extras.same_order ? GatedRows::scaled : GatedRows::all, y, stream_);                   // [n, ffn]
}

void Products::head(View<bf16> x, const RmsNorm& norm, std::span<const HeadRows> heads, View<float> logits, cudaStream_t stream) {
  stream_ = stream;
  x = normalize(x, norm);
  if (heads.empty()) return multiply_head(x, weights_.head, logits);
  for (const HeadRows& rows : heads)
    multiply_head(x.row_range(rows.first, rows.count), rows.head != nullptr ? rows.head : weights_.head, logits.row_range(rows.first, rows.count));
}

void Products::multiply_head(View<bf16> x, const bf16* of, View<float> logits) {
  const View<const bf16> head{of, logits.cols, x.cols};
  if (x.rows > head_crossover() && options_.order != SumOrder::same_for_any_rows) {
    gemm_(GemmForm::nt, x, head, logits, stream_);                                                       // [R, vocab]
    return softcap_logits(logits, spec_.logit_softcap, stream_);
  }
  for (std::int64_t first = 0; first < x.rows; first += kHeadRows) {
    const std::int64_t count = std::min(kHeadRows, x.rows - first);
    head_gemv(x.row_range(first, count), head, spec_.logit_softcap, logits.row_range(first, count), stream_);
  }
}

}  // namespace engine::cuda
