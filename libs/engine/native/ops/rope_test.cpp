#include "ops/rope.h"

#include "ops/op_test.h"

namespace engine {
using namespace test;

TEST("rope equals its definition with every instruction set, on strided heads with a partial rotary dimension") {
  for (const std::int64_t rotary : {2, 30, 64, 126, 128}) {
    const std::int64_t head_dim = 128, heads = 3, tokens = 7, stride = heads * head_dim + 5;
    const RopeTable table = make_rope_table(rope_frequencies({.rotary_dim = rotary}, 0), 50);
    const auto x = random_values(tokens * stride, 1);
    const std::vector<std::int32_t> positions = {0, 1, 2, 0, 49, 48, 3};
    std::vector<float> y0;
    for (const Isa isa : runnable_isas()) {
      auto y = x;
      rope_apply(exec(isa), table, positions.data(), head_dim, {y.data(), tokens, heads * head_dim, stride});
      if (isa == Isa::scalar) y0 = y;
      CHECK_ERROR(relative_error(y, y0), 1e-7, isa_name(isa), " rotary ", rotary);
      for (std::int64_t c = rotary; c < head_dim; ++c) CHECK_EQ(y[static_cast<std::size_t>(stride + c)], x[static_cast<std::size_t>(stride + c)]);
      rope_backward(exec(isa), table, positions.data(), head_dim, {y.data(), tokens, heads * head_dim, stride});
      CHECK_ERROR(relative_error(y, x), 1e-6, "backward is not the inverse, ", isa_name(isa));
    }
  }
}

TEST("the gradient of rope agrees with finite differences when yarn scales it") {
  const std::int64_t tokens = 3, dim = 16;
  const RopeTable table = make_rope_table(rope_frequencies({.type = RopeType::yarn, .rotary_dim = dim, .factor = 4.0, .original_context = 32}, 0), 64);
  const std::vector<std::int32_t> positions = {1, 20, 63};
  for (const Isa isa : runnable_isas()) {
    auto x = random_values(tokens * dim, 1);
    const auto dy = random_values(tokens * dim, 2);
    auto dx = dy;
    rope_backward(exec(isa), table, positions.data(), dim, {dx.data(), tokens, dim});
    const auto loss = [&] {
      auto y = x;
      rope_apply(exec(isa), table, positions.data(), dim, {y.data(), tokens, dim});
      return dot(y, dy);
    };
    CHECK_ERROR(finite_difference_error(x, dx, loss), 1e-3, isa_name(isa));
  }
}

TEST("dot products of rotated vectors depend only on the distance of their positions") {
  const std::int64_t dim = 64;
  const RopeTable table = make_rope_table(rope_frequencies({.rotary_dim = dim}, 0), 300);
  const auto q = random_values(dim, 1), k = random_values(dim, 2);
  const auto product = [&](std::int32_t i, std::int32_t j) {
    auto a = q, b = k;
    rope_apply(exec(Isa::scalar), table, &i, dim, {a.data(), 1, dim});
    rope_apply(exec(Isa::scalar), table, &j, dim, {b.data(), 1, dim});
    return dot(a, b);
  };
  CHECK_CLOSE(product(7, 3), product(207, 203), 1e-3);
}

// Values computed with transformers' ROPE_INIT_FUNCTIONS formulas in fp64.
TEST("scaled frequencies follow their formulas") {
  const auto linear = rope_frequencies({.type = RopeType::linear, .rotary_dim = 8, .factor = 2.0}, 0);
  CHECK_CLOSE(linear.inverse[0], 0.5, 1e-7);
  CHECK_CLOSE(linear.inverse[2], 0.005, 1e-9);

  // Llama 3.1: wavelength 2π of pair 0 is short (kept); pair 3's 2π·10^(5.7·…) is long (divided by 8).
  const RopeParameters llama{.type = RopeType::llama3, .rotary_dim = 128, .theta = 500000.0, .factor = 8.0, .original_context = 8192};
  const auto llama3 = rope_frequencies(llama, 0);
  CHECK_CLOSE(llama3.inverse[0], 1.0, 1e-7);
  const double last = std::pow(500000.0, -126.0 / 128.0);
  CHECK_CLOSE(llama3.inverse[63] / (last / 8.0), 1.0, 1e-6);
  bool descending = true;
  for (std::size_t i = 1; i < 64; ++i) descending = descending && llama3.inverse[i] < llama3.inverse[i - 1];
  CHECK(descending);

  const RopeParameters ntk{.type = RopeType::dynamic, .rotary_dim = 64, .factor = 2.0, .original_context = 128};
  CHECK(rope_frequencies(ntk, 128).inverse == rope_frequencies({.rotary_dim = 64}, 0).inverse);
  const double theta = 10000.0 * std::pow(2.0 * 256 / 128 - 1.0, 64.0 / 62.0);
  CHECK_CLOSE(rope_frequencies(ntk, 256).inverse[31] / std::pow(theta, -62.0 / 64.0), 1.0, 1e-6);

  const auto yarn = rope_frequencies({.type = RopeType::yarn, .rotary_dim = 128, .theta = 1e6, .factor = 4.0, .original_context = 32768}, 0);
  CHECK_CLOSE(yarn.attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-7);
  CHECK_CLOSE(yarn.inverse[0], 1.0, 1e-7);
  CHECK_CLOSE(yarn.inverse[63] / (std::pow(1e6, -126.0 / 128.0) / 4.0), 1.0, 1e-6);
}

TEST("rope refuses parameters and positions out of range") {
  CHECK_THROWS(invalid, rope_frequencies({.rotary_dim = 7}, 0));
  CHECK_THROWS(invalid, rope_frequencies({.type = RopeType::linear, .rotary_dim = 8, .factor = 0.5}, 0));
  CHECK_THROWS(invalid, rope_frequencies({.type = RopeType::yarn, .rotary_dim = 8, .factor = 2.0}, 0));
  const RopeTable table = make_rope_table(rope_frequencies({.rotary_dim = 8}, 0), 4);
  std::vector<float> x(8);
  const std::int32_t beyond = 4;
  CHECK_THROWS(invalid, rope_apply(exec(Isa::scalar), table, &beyond, 8, {x.data(), 1, 8}));
}

}  // namespace engine
