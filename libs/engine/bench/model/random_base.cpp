#include "model/random_base.h"

#include <algorithm>

#include "core/code_tables.h"
#include "core/json.h"
#include "model/bench_model.h"
#include "ops/dynamic8.h"
#include "ops/nf4.h"

namespace engine::bench {
namespace {

// The comparisons' models have a head of their own, whatever their size.
ModelSpec untied_spec(const std::string& shape) {
  Json config = parse_json(shape_config(shape), "config.json");
  config["tie_word_embeddings"] = false;
  return read_spec(config);
}

}  // namespace

RandomBase::RandomBase(const std::string& shape) : spec(untied_spec(shape)), table_(static_cast<std::size_t>(spec.vocab * spec.hidden)) {
  std::mt19937 random(3407);
  for (bf16& value : table_) value = to_bf16((static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f) * 0.0346f);  // standard deviation 0.02
  norm_.assign(static_cast<std::size_t>(spec.hidden), 1.0f);
  bias_.assign(static_cast<std::size_t>(std::max(spec.hidden, spec.q_size())), 0.01f);
  const Matrix table{Dtype::bf16, spec.vocab, spec.hidden, table_.data(), {}};
  weights.embedding = weights.head = table;
  weights.final_norm = norm_.data();
  LayerWeights layer;
  layer.input_norm = layer.mlp_norm = norm_.data();
  for (int p = 0; p < kProjections; ++p) {
    const auto projection = static_cast<Projection>(p);
    layer.linear[static_cast<std::size_t>(p)] = {quantized(projection, random), spec.has_bias(projection) ? bias_.data() : nullptr};
  }
  weights.layers.assign(static_cast<std::size_t>(spec.layers), layer);
}

Matrix RandomBase::quantized(Projection projection, std::mt19937& random) {
  const std::int64_t rows = spec.rows(projection), cols = spec.columns(projection), blocks = nf4_blocks(rows * cols);
  std::vector<std::uint8_t>& codes = bytes_.emplace_back(static_cast<std::size_t>(nf4_bytes(rows * cols)));
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random() >> 24);
  std::vector<std::uint8_t>& scales = bytes_.emplace_back(static_cast<std::size_t>(blocks));
  for (std::uint8_t& scale : scales) scale = static_cast<std::uint8_t>(random() >> 24);
  const std::vector<float>& nested = floats_.emplace_back(static_cast<std::size_t>(dynamic_blocks(blocks)), 0.01f);
  return {Dtype::nf4, rows, cols, codes.data(), {nullptr, scales.data(), kDynamicSigned.data(), nested.data(), 0.036f}};
}

}  // namespace engine::bench
