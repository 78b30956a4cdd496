#include "cuda/ops/qkv_post.h"

#include "cuda/ops/op_test.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"

namespace engine::cuda {
namespace {

using namespace test;

struct Case {
  std::int64_t tokens, heads, kv_heads, head_dim, rotary_dim;
  bool bias, norms;
};
const Case kCases[] = {{0, 2, 1, 64, 64, true, false},  {1, 2, 1, 16, 16, false, false}, {65, 4, 2, 64, 64, true, false}, {7, 3, 3, 96, 96, false, true},
                       {5, 4, 1, 128, 128, true, true}, {3, 2, 1, 256, 256, false, true}, {9, 2, 2, 80, 20, true, true}, {4, 2, 1, 32, 0, true, false}};

// What both sides compute from: raw columns, tables on the CPU and on the device.
struct Setup {
  QkvShape shape;
  RopeTable table;
  std::vector<float> raw, bias, q_norm, k_norm;
  std::vector<std::int32_t> positions;
  DeviceBuffer<float> device_bias, device_q, device_k, cos, sin;
  DeviceBuffer<std::int32_t> device_positions;
  QkvPost post;

  explicit Setup(const Case& c) : shape{c.heads, c.kv_heads, c.head_dim} {
    raw = random_bf16(c.tokens * shape.columns(), 1);
    for (std::int64_t t = 0; t < c.tokens; ++t) positions.push_back(static_cast<std::int32_t>(37 * t % 101));
    device_positions = DeviceBuffer<std::int32_t>(positions);
    if (c.rotary_dim > 0) {
      RopeParameters parameters;
      parameters.rotary_dim = c.rotary_dim;
      table = make_rope_table(rope_frequencies(parameters, 128), 101);
      cos = DeviceBuffer<float>(table.cos);
      sin = DeviceBuffer<float>(table.sin);
      post.cos = cos.data();
      post.sin = sin.data();
      post.rotary_dim = c.rotary_dim;
      post.positions = device_positions.data();
    }
    if (c.bias) {
      bias = random_values(shape.columns(), 2);
      device_bias = DeviceBuffer<float>(bias);
      post.bias = device_bias.data();
    }
    if (c.norms) {
      q_norm = random_values(c.head_dim, 3);
      k_norm = random_values(c.head_dim, 4);
      device_q = DeviceBuffer<float>(q_norm);
      device_k = DeviceBuffer<float>(k_norm);
      post.q_norm = device_q.data();
      post.k_norm = device_k.data();
      post.eps = 1e-6f;
      post.offset = 1.0f;
    }
  }

  // u = raw + bias
  std::vector<float> biased() const {
    std::vector<float> u = raw;
    if (!bias.empty())
      for (std::size_t i = 0; i < u.size(); ++i) u[i] += bias[i % bias.size()];
    return u;
  }
};

TEST("bias, head norms and rotation on the device are the CPU's, and so is their gradient") {
  for (const Case& c : kCases) {
    const Setup s(c);
    const std::int64_t t = c.tokens, columns = s.shape.columns(), normed = c.heads + c.kv_heads;
    const std::int64_t q_size = c.heads * c.head_dim, k_size = c.kv_heads * c.head_dim;
    const std::vector<float> u = s.biased();
    std::vector<float> y = u, q_rstd(static_cast<std::size_t>(t * c.heads)), k_rstd(static_cast<std::size_t>(t * c.kv_heads));
    const auto q_of = [&](std::vector<float>& m) { return Rows(m.data(), t, q_size, columns); };
    const auto k_of = [&](std::vector<float>& m) { return Rows(m.data() + q_size, t, k_size, columns); };
    std::vector<float> inputs = u;
    const engine::RmsNorm qn{s.q_norm.data(), c.head_dim, 1e-6f, 1.0f}, kn{s.k_norm.data(), c.head_dim, 1e-6f, 1.0f};
    if (c.norms) {
      engine::rmsnorm_forward(cpu(), qn, q_of(inputs), q_of(y), q_rstd.data());
      engine::rmsnorm_forward(cpu(), kn, k_of(inputs), k_of(y), k_rstd.data());
    }
    if (c.rotary_dim > 0) {
      rope_apply(cpu(), s.table, s.positions.data(), c.head_dim, q_of(y));
      rope_apply(cpu(), s.table, s.positions.data(), c.head_dim, k_of(y));
    }
    const auto dy = random_bf16(t * columns, 9);
    std::vector<float> d = dy;
    if (c.rotary_dim > 0) {
      rope_backward(cpu(), s.table, s.positions.data(), c.head_dim, q_of(d));
      rope_backward(cpu(), s.table, s.positions.data(), c.head_dim, k_of(d));
    }
    if (c.norms) {
      engine::rmsnorm_backward(cpu(), qn, q_of(inputs), q_rstd.data(), q_of(d), q_of(d));
      engine::rmsnorm_backward(cpu(), kn, k_of(inputs), k_rstd.data(), k_of(d), k_of(d));
    }

    const DeviceRows raw(s.raw, t, columns), out(t, columns, 64), gradient(dy, t, columns, 16);
    const DeviceBuffer<float> rstd = poisoned_floats(t * normed);
    qkv_post_forward(s.shape, s.post, raw.view(), out.view(), rstd.data(), stream());
    CHECK_ERROR(relative_error(out.read(), y), kRounding, t, " tokens, heads of ", c.head_dim);
    if (!c.norms) {
      qkv_post_forward(s.shape, s.post, raw.view(), raw.view(), nullptr, stream());
      CHECK(raw.read() == out.read());
    }
    qkv_post_backward(s.shape, s.post, raw.view(), rstd.data(), gradient.view(), stream());
    CHECK_ERROR(relative_error(gradient.read(), d), kRounding, t, " tokens, heads of ", c.head_dim);
  }
}

}  // namespace
}  // namespace engine::cuda
