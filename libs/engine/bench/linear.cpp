// Products of activations with stored weights: the matrices of a 1.5B model at 512 tokens and at one, and those of the demo model.
#include <algorithm>
#include <utility>

#include "core/code_tables.h"
#include "core/error.h"
#include "ops/linear.h"
#include "ops/nf4.h"
#include "support/bench.h"

using namespace engine;

namespace {

struct Weight {
  std::vector<std::uint8_t> bytes, codes;
  std::vector<float> absmax;
  DoubleQuantized nested;
  Matrix view;
};

Weight make(const Exec& ex, Dtype dtype, std::int64_t rows, std::int64_t cols) {
  const auto source = bench::values(rows * cols);
  Weight w;
  w.view = {dtype, rows, cols, nullptr, {}};
  if (dtype == Dtype::nf4) {
    w.bytes.resize(static_cast<std::size_t>(nf4_bytes(rows * cols)));
    w.absmax.resize(static_cast<std::size_t>(nf4_blocks(rows * cols)));
    quantize_nf4(ex, source.data(), rows * cols, w.bytes.data(), w.absmax.data());
    w.nested = double_quantize(w.absmax.data(), nf4_blocks(rows * cols));
    w.view.nf4 = {nullptr, w.nested.codes.data(), kDynamicSigned.data(), w.nested.nested_absmax.data(), w.nested.offset};
  } else {
    w.bytes.resize(static_cast<std::size_t>(rows * cols * dtype_size(dtype)));
    from_f32(dtype, source.data(), rows * cols, w.bytes.data());
  }
  w.view.data = w.bytes.data();
  return w;
}

double stored_bytes(const Weight& w) { return static_cast<double>(w.bytes.size() + w.nested.codes.size() + 4 * w.nested.nested_absmax.size()); }

void measure(const Exec& ex, Dtype dtype, std::int64_t tokens, std::int64_t outputs, std::int64_t inputs) {
  const Weight w = make(ex, dtype, outputs, inputs);
  const auto x = bench::values(tokens * inputs), dy = bench::values(tokens * outputs);
  std::vector<float> y(static_cast<std::size_t>(tokens * outputs)), dx(static_cast<std::size_t>(tokens * inputs));
  const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(outputs) * static_cast<double>(inputs);
  const std::string what = text(dtype_name(dtype), "  T ", tokens, "  N ", outputs, "  K ", inputs);
  const double forward = bench::best_time([&] { linear(ex, {x.data(), tokens, inputs}, w.view, nullptr, {y.data(), tokens, outputs}); });
  bench::print_row(ex, what, forward, flops, tokens <= kVectorRows ? stored_bytes(w) : 0);
  if (tokens <= kVectorRows) return;
  const double backward = bench::best_time([&] { linear_backward_input(ex, {dy.data(), tokens, outputs}, w.view, {dx.data(), tokens, inputs}); });
  bench::print_row(ex, what + "  dx", backward, flops, 0);
}

// The price of one order for any number of rows: the two orders take turns, so that what else the machine does meets both.
void measure_orders(const Exec& ex, std::int64_t tokens, std::int64_t outputs, std::int64_t inputs) {
  const Weight w = make(ex, Dtype::nf4, outputs, inputs);
  const auto x = bench::values(tokens * inputs);
  std::vector<float> y(static_cast<std::size_t>(tokens * outputs));
  double seconds[2] = {1e30, 1e30};
  for (int turn = 0; turn < 6; ++turn)
    for (const SumOrder order : {SumOrder::fastest, SumOrder::same_for_any_rows}) {
      Exec ordered = ex;
      ordered.order = order;
      double& best = seconds[order == SumOrder::fastest ? 0 : 1];
      best = std::min(best, bench::best_time([&] { linear(ordered, {x.data(), tokens, inputs}, w.view, nullptr, {y.data(), tokens, outputs}); }, 0.0));
    }
  const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(outputs) * static_cast<double>(inputs);
  const std::string what = text("nf4  T ", tokens, "  N ", outputs, "  K ", inputs);
  bench::print_row(ex, what + "  fastest order", seconds[0], flops, 0);
  bench::print_row(ex, what + "  order for any rows", seconds[1], flops, 0);
}

}  // namespace

int main() {
  ThreadPool pool(bench::thread_count());
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const Exec ex = make_exec(pool, compute);
    bench::print_header(ex, "linear");
    for (const std::int64_t tokens : {8, 16, 64, 512})
      for (const auto& [outputs, inputs] : {std::pair{1536, 1536}, std::pair{8960, 1536}, std::pair{1536, 8960}, std::pair{512, 192}})
        measure_orders(ex, tokens, outputs, inputs);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::nf4}) {
      measure(ex, dtype, 512, 1536, 1536);
      measure(ex, dtype, 512, 8960, 1536);
      measure(ex, dtype, 512, 1536, 8960);
    }
    measure(ex, Dtype::nf4, 16, 8960, 1536);
    for (const Dtype dtype : {Dtype::bf16, Dtype::nf4}) {
      measure(ex, dtype, 1, 32 * 1536, 1536);  // larger than the caches, as all of a model's layers are
      measure(ex, dtype, 4, 32 * 1536, 1536);
      measure(ex, dtype, 1, 4096, 8960);
    }
    for (const std::int64_t tokens : {1, 64, 256, 1024})
      for (const Dtype dtype : {Dtype::f32, Dtype::nf4}) {
        measure(ex, dtype, tokens, 192, 192);
        measure(ex, dtype, tokens, 512, 192);
      }
  }
}
