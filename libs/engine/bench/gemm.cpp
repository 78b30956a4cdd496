// Products of two fp32 matrices: weight gradients and LoRA's narrow products.
#include "ops/gemm.h"

#include "core/error.h"
#include "support/bench.h"

using namespace engine;

namespace {

void measure(const Exec& ex, std::int64_t tokens, std::int64_t outputs, std::int64_t inputs) {
  const auto x = bench::values(tokens * inputs), dy = bench::values(tokens * outputs), w = bench::values(outputs * inputs);
  std::vector<float> y(static_cast<std::size_t>(tokens * outputs)), dx(static_cast<std::size_t>(tokens * inputs)),
      dw(static_cast<std::size_t>(outputs * inputs));
  const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(outputs) * static_cast<double>(inputs);
  const std::string shape = text("  T ", tokens, "  N ", outputs, "  K ", inputs);
  const ConstRows xs{x.data(), tokens, inputs}, dys{dy.data(), tokens, outputs}, ws{w.data(), outputs, inputs};
  bench::print_row(ex, "nt y = x·wᵀ" + shape, bench::best_time([&] { gemm_nt(ex, xs, ws, {y.data(), tokens, outputs}); }), flops, 0);
  bench::print_row(ex, "nn dx = dy·w" + shape, bench::best_time([&] { gemm_nn(ex, dys, ws, {dx.data(), tokens, inputs}); }), flops, 0);
  bench::print_row(ex, "tn dw += dyᵀ·x" + shape, bench::best_time([&] { gemm_tn(ex, dys, xs, {dw.data(), outputs, inputs}, 1.0f, true); }), flops, 0);
}

}  // namespace

int main() {
  ThreadPool pool(bench::thread_count());
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const Exec ex = make_exec(pool, compute);
    bench::print_header(ex, "gemm");
    measure(ex, 1024, 1024, 1024);
    measure(ex, 512, 16, 1536);   // LoRA's A
    measure(ex, 512, 8960, 16);   // LoRA's B
    measure(ex, 256, 192, 192);   // the demo model's layers
    measure(ex, 256, 512, 192);
    measure(ex, 256, 4096, 192);  // and its head
    measure(ex, 32, 64, 64);
  }
}
