#include "ops/embed.h"

#include "ops/op_test.h"

namespace engine {
using namespace test;

TEST("embedding copies and scales the rows of every weight type") {
  const std::int64_t vocab = 11, width = 64;
  const std::vector<std::uint32_t> ids = {3, 0, 10, 3, 3};
  for (const WeightKind kind : kWeightKinds) {
    const OwnedWeight table = make_weight(kind, vocab, width, 1);
    std::vector<float> all(static_cast<std::size_t>(vocab * width));
    decode_weight(Isa::scalar, table.view, 0, vocab * width, all.data());
    for (const Isa isa : runnable_isas()) {
      auto out = poisoned(5 * width);
      embed_forward(exec(isa), table.view, ids, 2.0f, {out.data(), 5, width});
      for (std::size_t t = 0; t < ids.size(); ++t)
        for (std::size_t c = 0; c < 64; ++c) CHECK_EQ(out[t * 64 + c], 2.0f * all[ids[t] * 64 + c]);
    }
  }
}

TEST("the embedding's gradient adds repeated tokens and agrees with finite differences") {
  const std::int64_t vocab = 7, width = 33;
  const std::vector<std::uint32_t> ids = {3, 0, 6, 3, 3};
  const auto dout = random_values(5 * width, 2);
  for (const Isa isa : runnable_isas()) {
    auto table = random_values(vocab * width, 1);
    std::vector<float> dtable(static_cast<std::size_t>(vocab * width), 0.0f);
    embed_backward(exec(isa), ids, {dout.data(), 5, width}, 1.5f, {dtable.data(), vocab, width});
    const auto loss = [&] {
      auto out = poisoned(5 * width);
      embed_forward(exec(isa), {Dtype::f32, vocab, width, table.data(), {}}, ids, 1.5f, {out.data(), 5, width});
      return dot(out, dout);
    };
    CHECK_ERROR(finite_difference_error(table, dtable, loss, 1e-2f, 300), 1e-3, isa_name(isa));
  }
}

TEST("a token beyond the vocabulary is refused, and no tokens are fine") {
  const OwnedWeight table = make_weight(WeightKind::f32, 4, 8, 1);
  std::vector<float> out(8);
  CHECK_THROWS(invalid, embed_forward(exec(Isa::scalar), table.view, std::vector<std::uint32_t>{4}, 1.0f, {out.data(), 1, 8}));
  embed_forward(exec(Isa::scalar), table.view, {}, 1.0f, {nullptr, 0, 8});
}

}  // namespace engine
