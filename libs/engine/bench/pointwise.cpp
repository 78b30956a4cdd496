// The operations that are bound by memory: norms, rotation, gating, loss, optimizer, quantization. Bytes are what must be read and written.
#include "core/error.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/dynamic8.h"
#include "ops/elementwise.h"
#include "ops/glu.h"
#include "ops/nf4.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "support/bench.h"

using namespace engine;

namespace {

double bytes(std::int64_t floats) { return 4.0 * static_cast<double>(floats); }

void measure(const Exec& ex, std::int64_t tokens, std::int64_t hidden, std::int64_t ffn, std::int64_t heads, std::int64_t head_dim) {
  const std::string shape = text("  T ", tokens, "  hidden ", hidden, "  ffn ", ffn);
  const std::int64_t n = tokens * hidden, f = tokens * ffn;
  const auto x = bench::values(n, 1), w = bench::values(hidden, 2), dy = bench::values(n, 3), gate = bench::values(f, 4), up = bench::values(f, 5);
  std::vector<float> y(x.size()), rstd(static_cast<std::size_t>(tokens)), dw(w.size()), a(gate.size()), b(gate.size());
  const RmsNorm norm{w.data(), hidden, 1e-6f};
  const ConstRows xs{x.data(), tokens, hidden}, dys{dy.data(), tokens, hidden};
  const Rows ys{y.data(), tokens, hidden};
  bench::print_row(ex, "rmsnorm" + shape, bench::best_time([&] { rmsnorm_forward(ex, norm, xs, ys, rstd.data()); }), 0, bytes(2 * n));
  bench::print_row(ex, "rmsnorm dx" + shape, bench::best_time([&] { rmsnorm_backward(ex, norm, xs, rstd.data(), dys, ys, true); }), 0, bytes(4 * n));
  bench::print_row(ex, "rmsnorm dw" + shape, bench::best_time([&] { rmsnorm_backward_weight(ex, norm, xs, rstd.data(), dys, dw.data()); }), 0, bytes(2 * n));
  const RopeTable table = make_rope_table(rope_frequencies({.rotary_dim = head_dim}, 0), tokens);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<std::int32_t>(t);
  bench::print_row(ex, "rope" + shape, bench::best_time([&] { rope_apply(ex, table, positions.data(), head_dim, {y.data(), tokens, heads * head_dim}); }), 0,
                   bytes(2 * tokens * heads * head_dim));
  const ConstRows gs{gate.data(), tokens, ffn}, us{up.data(), tokens, ffn};
  bench::print_row(ex, "silu glu" + shape, bench::best_time([&] { glu_forward(ex, Activation::silu, gs, us, {a.data(), tokens, ffn}); }), 0, bytes(3 * f));
  bench::print_row(ex, "silu glu backward" + shape,
                   bench::best_time([&] { glu_backward(ex, Activation::silu, gs, us, us, {a.data(), tokens, ffn}, {b.data(), tokens, ffn}); }), 0, bytes(5 * f));
  bench::print_row(ex, "gelu glu" + shape, bench::best_time([&] { glu_forward(ex, Activation::gelu_tanh, gs, us, {a.data(), tokens, ffn}); }), 0,
                   bytes(3 * f));
  bench::print_row(ex, "add" + shape, bench::best_time([&] { add_scaled(ex, xs, 1.0f, ys); }), 0, bytes(3 * n));
  bench::print_row(ex, "dropout" + shape, bench::best_time([&] { dropout(ex, {1, 2}, 0.1f, xs, ys); }), 0, bytes(2 * n));
}

void measure_loss(const Exec& ex, std::int64_t rows, std::int64_t vocab) {
  auto logits = bench::values(rows * vocab);
  const std::vector<std::uint32_t> targets(static_cast<std::size_t>(rows), 3);
  const std::vector<float> weights(static_cast<std::size_t>(rows), 1.0f);
  const Rows view{logits.data(), rows, vocab};
  bench::print_row(ex, text("cross entropy  rows ", rows, "  vocabulary ", vocab),
                   bench::best_time([&] { cross_entropy(ex, view, targets, weights, 0, LogitGradient::in_place, nullptr); }), 0, bytes(2 * rows * vocab));
  std::vector<std::int32_t> best(static_cast<std::size_t>(rows));
  bench::print_row(ex, text("argmax  rows ", rows, "  vocabulary ", vocab), bench::best_time([&] { argmax_rows(ex, view, best.data()); }), 0,
                   bytes(rows * vocab));
}

void measure_optimizer(const Exec& ex, std::int64_t n) {
  auto p = bench::values(n, 1), m = bench::values(n, 3);
  const auto g = bench::values(n, 2);
  std::vector<float> v(p.size(), 1.0f), m_absmax(static_cast<std::size_t>(dynamic_blocks(n))), v_absmax(m_absmax.size());
  std::vector<std::uint8_t> m8(p.size()), v8(p.size()), packed(static_cast<std::size_t>(nf4_bytes(n)));
  std::vector<float> absmax(static_cast<std::size_t>(nf4_blocks(n)));
  const AdamW adamw{.learning_rate = 1e-6f, .step = 10};
  const std::string size = text("  values ", n);
  bench::print_row(ex, "adamw f32" + size, bench::best_time([&] { adamw_f32(ex, adamw, p.data(), g.data(), m.data(), v.data(), n); }), 0, bytes(7 * n));
  bench::print_row(ex, "adamw 8-bit" + size,
                   bench::best_time([&] { adamw_8bit(ex, adamw, p.data(), g.data(), m8.data(), v8.data(), m_absmax.data(), v_absmax.data(), n); }), 0,
                   bytes(4 * n));
  bench::print_row(ex, "sum of squares" + size, bench::best_time([&] { sum_of_squares(ex, g.data(), n); }), 0, bytes(n));
  bench::print_row(ex, "nf4 quantize" + size, bench::best_time([&] { quantize_nf4(ex, g.data(), n, packed.data(), absmax.data()); }), 0,
                   4.5625 * static_cast<double>(n));
}

}  // namespace

int main() {
  ThreadPool pool(bench::thread_count());
  const Exec ex = make_exec(pool, Compute::f32);
  bench::print_header(ex, "pointwise");
  measure(ex, 512, 1536, 8960, 12, 128);
  measure(ex, 128, 192, 512, 6, 32);
  measure_loss(ex, 64, 151936);
  measure_loss(ex, 128, 4096);
  measure_optimizer(ex, 18'465'000);
  measure_optimizer(ex, 40'000);
}
