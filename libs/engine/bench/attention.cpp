// Attention over packed sequences: a 1.5B model's heads (12 over 2, 128 wide) and the demo model's.
#include "ops/attention.h"

#include "core/error.h"
#include "support/bench.h"

using namespace engine;

namespace {

void measure(const Exec& ex, AttentionShape shape, std::vector<std::int64_t> offsets) {
  const std::int64_t tokens = offsets.back(), q_cols = shape.heads * shape.head_dim, kv_cols = shape.kv_heads * shape.head_dim;
  const auto q = bench::values(tokens * q_cols, 1), k = bench::values(tokens * kv_cols, 2), v = bench::values(tokens * kv_cols, 3), dout = bench::values(tokens * q_cols, 4);
  std::vector<float> out(q.size()), dq(q.size()), dk(k.size()), dv(v.size()), lse(static_cast<std::size_t>(tokens * shape.heads));
  double pairs = 0;  // of query and key, causal
  for (std::size_t i = 1; i < offsets.size(); ++i) pairs += 0.5 * static_cast<double>(offsets[i] - offsets[i - 1]) * static_cast<double>(offsets[i] - offsets[i - 1] + 1);
  const double flops = 4.0 * pairs * static_cast<double>(q_cols);
  const ConstRows qs{q.data(), tokens, q_cols}, ks{k.data(), tokens, kv_cols}, vs{v.data(), tokens, kv_cols};
  const std::string what = text(shape.heads, "/", shape.kv_heads, " x ", shape.head_dim, "  sequences ", offsets.size() - 1, "  tokens ", tokens);
  const double forward = bench::best_time([&] { attention_forward(ex, shape, qs, ks, vs, offsets, {out.data(), tokens, q_cols}, lse.data()); });
  bench::print_row(ex, what, forward, flops, 0);
  const double backward = bench::best_time([&] {
    attention_backward(ex, shape, qs, ks, vs, offsets, ConstRows{out.data(), tokens, q_cols}, lse.data(), {dout.data(), tokens, q_cols},
                       {dq.data(), tokens, q_cols}, {dk.data(), tokens, kv_cols}, {dv.data(), tokens, kv_cols});
  });
  bench::print_row(ex, what + "  backward", backward, 2.5 * flops, 0);
}

}  // namespace

int main() {
  ThreadPool pool(bench::thread_count());
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const Exec ex = make_exec(pool, compute);
    bench::print_header(ex, "attention");
    measure(ex, {12, 2, 128, 0.088f}, {0, 512});
    measure(ex, {12, 2, 128, 0.088f}, {0, 2048});
    measure(ex, {12, 2, 128, 0.088f}, {0, 100, 300, 350, 512});
    measure(ex, {6, 2, 32, 0.18f}, {0, 60, 130, 200, 256});
    measure(ex, {6, 2, 32, 0.18f}, {0, 64});
  }
}
