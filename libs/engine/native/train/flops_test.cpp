#include "train/flops.h"

#include "core/test.h"

using namespace engine;

namespace {

// Two layers of 4 heads of 8 over 2 key heads, hidden 32, ffn 64, vocabulary 100.
ModelSpec small_spec() {
  ModelSpec spec;
  spec.hidden = 32, spec.layers = 2, spec.heads = 4, spec.kv_heads = 2, spec.head_dim = 8, spec.ffn = 64, spec.vocab = 100;
  spec.layer.resize(2);
  return spec;
}

LabelledBatch rows_of(std::vector<std::int64_t> offsets, std::int64_t labels, std::vector<std::uint32_t>& ids) {
  ids.assign(static_cast<std::size_t>(offsets.back()), 0);
  return {ids, std::move(offsets), std::vector<std::int64_t>(static_cast<std::size_t>(labels)), std::vector<std::uint32_t>(static_cast<std::size_t>(labels))};
}

// q and o 32·32, k and v 32·16, gate, up and down 32·64.
constexpr double kBlock = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64, kHead = 100 * 32;

}  // namespace

TEST("a step's arithmetic is its products, forward and for the inputs' gradients, and attention over the pairs of each row") {
  std::vector<std::uint32_t> ids;
  const double products = 4 * (kBlock * 2 * 8 + kHead * 5);
  // Rows of 3 and 5 tokens have 6 and 15 pairs, in each of two layers.
  CHECK_EQ(training_flops(small_spec(), rows_of({0, 3, 8}, 5, ids), false), products + 3.5 * 4 * 2 * 21 * 32);
  CHECK_EQ(training_flops(small_spec(), rows_of({0, 3, 8}, 5, ids), true), products * 1.5 + 3.5 * 4 * 2 * 21 * 32);
}

TEST("a window leaves out the pairs that it hides, and one that is longer than the row none") {
  std::vector<std::uint32_t> ids;
  ModelSpec spec = small_spec();
  const LabelledBatch row = rows_of({0, 8}, 7, ids);
  const double open = training_flops(spec, row, false);
  spec.layer[1].window = 8;
  CHECK_EQ(training_flops(spec, row, false), open);
  spec.layer[1].window = 3;  // 1 + 2 + 3 · 6 of 36 pairs
  CHECK_EQ(open - training_flops(spec, row, false), 3.5 * 4 * (36 - 21) * 32);
}
