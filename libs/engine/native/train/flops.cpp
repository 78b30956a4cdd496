#include "train/flops.h"

#include <algorithm>

namespace engine {
namespace {

// Of a causal row of n tokens whose queries see their own and the previous window − 1 positions; window 0: all.
double visible_pairs(std::int64_t n, std::int64_t window) {
  const std::int64_t w = window == 0 ? n : std::min(window, n);
  return static_cast<double>(w) * static_cast<double>(w + 1) / 2 + static_cast<double>(n - w) * static_cast<double>(w);
}

}  // namespace

double training_flops(const ModelSpec& spec, const LabelledBatch& batch, bool all_weights) {
  double block = 0;
  for (int p = 0; p < kProjections; ++p) {
    const auto projection = static_cast<Projection>(p);
    block += static_cast<double>(spec.rows(projection)) * static_cast<double>(spec.columns(projection));
  }
  const double head = static_cast<double>(spec.vocab) * static_cast<double>(spec.hidden);
  const double products = block * static_cast<double>(spec.layers * batch.tokens()) + head * static_cast<double>(batch.labels());

  double pairs = 0;
  for (std::size_t row = 0; row + 1 < batch.offsets.size(); ++row)
    for (const LayerSpec& layer : spec.layer) pairs += visible_pairs(batch.offsets[row + 1] - batch.offsets[row], layer.window);
  // A pair takes q·k and p·v: 2 FLOP for each of head_dim elements of every head, both times.
  const double attention = 4 * pairs * static_cast<double>(spec.q_size());

  return 2 * products * (all_weights ? 3 : 2) + attention * 3.5;
}

}  // namespace engine
