#include "cuda/ops/attention.h"

#include <algorithm>
#include <functional>
#include <string>

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/op_test.h"

namespace engine::cuda::test {
namespace {

using engine::test::poisoned;

struct Case {
  AttentionShape shape;
  std::vector<std::int64_t> lengths;
};

std::vector<Case> cases() {
  return {{{2, 1, 16, 0.25f}, {1}},
          {{4, 2, 32, 0.18f}, {7, 33, 24}},
          {{3, 3, 64, 0.125f}, {63, 0, 65}},
          {{4, 2, 96, 0.1f}, {5, 130}},
          {{6, 2, 128, 0.088f}, {129, 1}},
          {{2, 1, 256, 0.0625f}, {70}},
          {{2, 1, 128, 0.088f, 100}, {3, 300}},
          {{2, 1, 64, 0.125f, 130}, {400}},
          {{2, 1, 128, 0.088f, 0, 3.0f}, {200}},
          {{4, 2, 32, 0.18f, 16}, {7, 100, 24}},
          {{2, 1, 16, 0.2f, 1}, {65}},
          {{4, 1, 64, 0.125f, 0, 5.0f}, {70, 3}},
          {{4, 4, 16, 0.22f, 70, 2.0f}, {200}},
          {{2, 1, 32, 0.2f, 64}, {300}}};
}

struct Problem {
  AttentionShape shape;
  std::vector<std::int64_t> offsets{0};
  std::int64_t tokens = 0, q_cols = 0, kv_cols = 0;
  std::vector<float> q, k, v, dout;

  explicit Problem(const Case& c, float width = 1.0f) : shape(c.shape) {
    for (const std::int64_t length : c.lengths) offsets.push_back(offsets.back() + length);
    tokens = offsets.back();
    q_cols = shape.heads * shape.head_dim;
    kv_cols = shape.kv_heads * shape.head_dim;
    q = random_bf16(tokens * q_cols, 1, width);
    k = random_bf16(tokens * kv_cols, 2, width);
    v = random_bf16(tokens * kv_cols, 3);
    dout = random_bf16(tokens * q_cols, 4);
  }
};

struct Result {
  std::vector<float> out, lse, dq, dk, dv;
};

Result definition(const Problem& p, Compute compute) {
  Result r{poisoned(p.tokens * p.q_cols), poisoned(p.tokens * p.shape.heads), poisoned(p.tokens * p.q_cols), poisoned(p.tokens * p.kv_cols),
           poisoned(p.tokens * p.kv_cols)};
  const Exec ex = exec(Isa::scalar, compute);
  const ConstRows q = rows(p.q, p.tokens, p.q_cols), k = rows(p.k, p.tokens, p.kv_cols), v = rows(p.v, p.tokens, p.kv_cols);
  engine::attention_forward(ex, p.shape, q, k, v, p.offsets, rows(r.out, p.tokens, p.q_cols), r.lse.data());
  engine::attention_backward(ex, p.shape, q, k, v, p.offsets, rows(std::as_const(r.out), p.tokens, p.q_cols), r.lse.data(),
                             rows(p.dout, p.tokens, p.q_cols), rows(r.dq, p.tokens, p.q_cols), rows(r.dk, p.tokens, p.kv_cols),
                             rows(r.dv, p.tokens, p.kv_cols));
  return r;
}

// On the device, with q, k, v and their gradients as slices of fused rows, and out and dout in rows with a tail.
Result solve(const Problem& p) {
  const std::int64_t columns = p.q_cols + 2 * p.kv_cols, tail = 16;
  std::vector<float> fused(static_cast<std::size_t>(p.tokens * columns));
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    std::copy_n(p.q.begin() + t * p.q_cols, p.q_cols, fused.begin() + t * columns);
    std::copy_n(p.k.begin() + t * p.kv_cols, p.kv_cols, fused.begin() + t * columns + p.q_cols);
    std::copy_n(p.v.begin() + t * p.kv_cols, p.kv_cols, fused.begin() + t * columns + p.q_cols + p.kv_cols);
  }
  const DeviceRows qkv(fused, p.tokens, columns), dqkv(p.tokens, columns), out(p.tokens, p.q_cols, tail), dout(p.dout, p.tokens, p.q_cols, tail);
  const DeviceBuffer<float> lse(p.tokens * p.shape.heads);
  const DeviceBuffer<AttentionTile> table(attention_tiles(p.offsets));
  const AttentionTiles tiles{table.data(), table.size()};
  const DeviceBuffer<std::byte> workspace(attention_backward_workspace(p.shape, p.tokens));

  const View<const bf16> all = qkv.view(), q = all.columns(0, p.q_cols), k = all.columns(p.q_cols, p.kv_cols),
                               v = all.columns(p.q_cols + p.kv_cols, p.kv_cols);
  const View<bf16> d = dqkv.view();
  attention_forward(p.shape, q, k, v, tiles, out.view(), lse.data(), stream());
  attention_backward(p.shape, q, k, v, tiles, out.view(), lse.data(), dout.view(), d.columns(0, p.q_cols), d.columns(p.q_cols, p.kv_cols),
                     d.columns(p.q_cols + p.kv_cols, p.kv_cols), workspace.data(), stream());
  const std::vector<float> gradients = dqkv.read();
  Result r{out.read(), lse.read(stream()), {}, {}, {}};
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const auto row = gradients.begin() + t * columns;
    r.dq.insert(r.dq.end(), row, row + p.q_cols);
    r.dk.insert(r.dk.end(), row + p.q_cols, row + p.q_cols + p.kv_cols);
    r.dv.insert(r.dv.end(), row + p.q_cols + p.kv_cols, row + columns);
  }
  return r;
}

// Runs `work` with the kernels that the device takes by itself and with those that every device has.
void with_all_kernels(const std::function<void(const std::string&)>& work) {
  work("");
  attention::use_kernels(attention::Kernels::portable);
  try {
    work(", portable kernels");
  } catch (...) {
    attention::use_kernels(attention::Kernels::fitting);
    throw;
  }
  attention::use_kernels(attention::Kernels::fitting);
}

// ‖a − exact‖ may be this many times what the scalar bf16 definition has.
void check_accuracy(const std::vector<float>& a, const std::vector<float>& bf16_definition, const std::vector<float>& exact, const std::string& what) {
  // Outputs of the device are rounded to bf16 themselves: half a unit in the last place of each value, 2^-8 of it at most.
  const double bound = 2 * relative_error(bf16_definition, exact) + 0x1p-8;
  CHECK_ERROR(relative_error(a, exact), bound, what);
}

}  // namespace

TEST("on the device, attention and its gradients are as exact as a plain bf16 computation") {
  int number = 0;
  for (const Case& c : cases()) {
    const Problem p(c);
    const Result exact = definition(p, Compute::f32), rounded = definition(p, Compute::bf16);
    const auto check = [&](const std::string& kernels) {
      const Result r = solve(p);
      const std::string which = " of case " + std::to_string(number) + kernels;
      check_accuracy(r.out, rounded.out, exact.out, "out" + which);
      CHECK_ERROR(relative_error(r.lse, exact.lse), 3e-6, "lse", which);
      check_accuracy(r.dq, rounded.dq, exact.dq, "dq" + which);
      check_accuracy(r.dk, rounded.dk, exact.dk, "dk" + which);
      check_accuracy(r.dv, rounded.dv, exact.dv, "dv" + which);
    };
    if (c.shape.head_dim == 64 || c.shape.head_dim == 128)
      with_all_kernels(check);
    else
      check("");
    ++number;
  }
}

TEST("on the device, heads that share a block add up to the gradients of their keys") {
  // 192 key heads of one tile are enough for a large device, so heads are grouped there and need no memory for parts.
  for (const std::int64_t head_dim : {16, 64}) {
    const AttentionShape shape{384, 192, head_dim, 0.25f};
    CHECK(attention_backward_workspace(shape, 128) < attention_backward_workspace(shape, 127));
    const Problem p(Case{shape, {128}});
    const Result r = solve(p), exact = definition(p, Compute::f32), rounded = definition(p, Compute::bf16);
    check_accuracy(r.dk, rounded.dk, exact.dk, "dk");
    check_accuracy(r.dv, rounded.dv, exact.dv, "dv");
  }
}

TEST("on the device, a packed sequence has the same bits as alone and runs repeat bit for bit") {
  for (const AttentionShape shape : {AttentionShape{4, 2, 32, 0.18f}, AttentionShape{2, 1, 128, 0.09f}}) {
    const Problem packed(Case{shape, {7, 90, 24}});
    Problem alone(Case{shape, {90}});
    const auto cut = [&](const std::vector<float>& from, std::int64_t cols) {
      return std::vector<float>(from.begin() + 7 * cols, from.begin() + 97 * cols);
    };
    alone.q = cut(packed.q, packed.q_cols);
    alone.k = cut(packed.k, packed.kv_cols);
    alone.v = cut(packed.v, packed.kv_cols);
    alone.dout = cut(packed.dout, packed.q_cols);
    const Result all = solve(packed), again = solve(packed), one = solve(alone);
    CHECK(again.out == all.out && again.dq == all.dq && again.dk == all.dk && again.dv == all.dv);
    CHECK(one.out == cut(all.out, packed.q_cols));
    CHECK(one.dq == cut(all.dq, packed.q_cols));
    CHECK(one.dk == cut(all.dk, packed.kv_cols));
    CHECK(one.dv == cut(all.dv, packed.kv_cols));
  }
}

TEST("on the device, very large scores neither overflow nor lose the sum") {
  const Problem p(Case{{2, 1, 64, 1.0f}, {90}}, 12.0f);
  const Result r = solve(p), exact = definition(p, Compute::f32);
  CHECK_ERROR(relative_error(r.out, exact.out), 5e-3, "out");
  CHECK_ERROR(relative_error(r.lse, exact.lse), 1e-6, "lse");
}

TEST("a device tile table covers every token once, most work first, and fits its bound") {
  const std::vector<std::int64_t> offsets{0, 1, 1, 300, 428};
  const std::vector<AttentionTile> tiles = attention_tiles(offsets);
  std::vector<int> covered(428);
  for (const AttentionTile& tile : tiles)
    for (std::int32_t t = tile.row; t < std::min(tile.row + static_cast<std::int32_t>(kAttentionTile), tile.last); ++t)
      ++covered[static_cast<std::size_t>(t)];
  CHECK(std::all_of(covered.begin(), covered.end(), [](int times) { return times == 1; }));
  CHECK(std::is_sorted(tiles.begin(), tiles.end(), [](const auto& a, const auto& b) { return a.row - a.first > b.row - b.first; }));
  CHECK(static_cast<std::int64_t>(tiles.size()) <= most_attention_tiles(428, 4));
}

TEST("attention on the device names a head size that has no kernel") {
  const AttentionShape shape{1, 1, 24, 1.0f};
  const DeviceRows rows(4, 24);
  const DeviceBuffer<AttentionTile> table(attention_tiles(std::vector<std::int64_t>{0, 4}));
  CHECK_THROWS(unsupported, attention_forward(shape, rows.view(), rows.view(), rows.view(), {table.data(), 1}, rows.view(), nullptr, stream()));
}

}  // namespace engine::cuda::test
