// ops.cpp: what each CUDA operation takes at the shapes of a 7 B and a 1.5 B model, beside its floor.
//   bench_cuda [7b|1.5b] [tokens …] [--only WORD] [--long] [--portable]
//     a table: time, GB/s or TFLOP/s, share of the floor (default: both models, 640 2048 8192 tokens)
//     --long: one row of all tokens, not rows of 1024, for attention; --portable: attention without the kernels for warpgroups
//   bench_cuda check                                   runs cuda_device_test, which lies beside this program: every test of every operation
// Data are random; the second-level cache is flushed before each run; times are medians of events around single calls, so each includes one launch.
// Floors are bytes over the copy bandwidth, or operations over the rate of a large product, both measured first.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/code_tables.h"
#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/adamw.h"
#include "cuda/ops/attention.h"
#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/cross_entropy.h"
#include "cuda/ops/embed.h"
#include "cuda/ops/gemm.h"
#include "cuda/ops/glu.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/nf4.h"
#include "cuda/ops/qkv_post.h"
#include "cuda/ops/reduce.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/runtime/device_buffer.h"
#include "ops/dynamic8.h"
#include "ops/nf4.h"

using namespace engine;        // NOLINT: a program
using namespace engine::cuda;  // NOLINT

namespace {

struct Model {
  const char* name;
  std::int64_t hidden, ffn, heads, kv_heads, head_dim, vocab, lora_values;
  std::int64_t qkv() const { return (heads + 2 * kv_heads) * head_dim; }
};
const Model kModels[] = {{"7b", 3584, 18944, 28, 4, 128, 152064, 40370176}, {"1.5b", 1536, 8960, 12, 2, 128, 151936, 18464768}};
constexpr std::int64_t kRank = 16, kTail = 64, kChunk = 512;

class Bench {
 public:
  Bench() : flush_(std::int64_t{512} << 20) {
    const DeviceInfo info = device_info(0);
    Gemm gemm;
    std::printf("%s, %d multiprocessors, %lld MiB of L2; products by %s\n", info.name.c_str(), info.multiprocessors, static_cast<long long>(info.l2_bytes >> 20),
                std::string(gemm.library()).c_str());
    const DeviceMemory from(std::int64_t{2} << 30), to(std::int64_t{2} << 30);
    bandwidth_ = 2.0 * static_cast<double>(from.bytes()) / seconds([&] { copy_on_device(to.data(), from.data(), from.bytes(), stream_); });
    constexpr std::int64_t kSide = 8192;
    const auto a = random(kSide * kSide), b = random(kSide * kSide);
    const View<bf16> c(to.as<bf16>(), kSide, kSide);
    const View<const bf16> va(a.data(), kSide, kSide), vb(b.data(), kSide, kSide);
    const DeviceMemory scratch(Gemm::tune_bytes(GemmForm::nt, kSide, kSide, kSide, kSide, kSide, kSide, false));
    gemm.tune(GemmForm::nt, kSide, kSide, kSide, kSide, kSide, kSide, false, false, false, scratch.data(), scratch.bytes(), stream_);
    rate_ = 2.0 * kSide * kSide * kSide / seconds([&] { gemm(GemmForm::nt, va, vb, c, stream_); });
    std::printf("copy %.2f TB/s, product of 8192 cubed %.0f TFLOP/s\n\n", bandwidth_ * 1e-12, rate_ * 1e-12);
  }

  cudaStream_t stream() const { return stream_; }

  // Normal-like bf16 values, the same million over and over.
  static DeviceBuffer<bf16> random(std::int64_t n, float width = 1.0f) {
    const Philox words{7, 1};
    return repeated<bf16>(n, [&](std::uint64_t i) {
      return to_bf16(width * 2.0f * (words.uniform(3 * i) + words.uniform(3 * i + 1) + words.uniform(3 * i + 2) - 1.5f));
    });
  }
  static DeviceBuffer<float> random_f32(std::int64_t n, float width = 1.0f) {
    const Philox words{7, 2};
    return repeated<float>(n, [&](std::uint64_t i) { return width * (2.0f * words.uniform(i) - 1.0f); });
  }
  static DeviceBuffer<std::uint8_t> random_bytes(std::int64_t n) {
    const Philox words{7, 3};
    return repeated<std::uint8_t>(n, [&](std::uint64_t i) { return static_cast<std::uint8_t>(words.word(i)); });
  }

  double seconds(const std::function<void()>& body) {
    constexpr int kRuns = 9;
    std::vector<double> times;
    const Event begin(Event::Timing::on), end(Event::Timing::on);
    for (int i = -2; i < kRuns; ++i) {
      fill_bytes(flush_.data(), i & 1, flush_.bytes(), stream_);
      begin.record(stream_);
      body();
      end.record(stream_);
      end.synchronize();
      if (i >= 0) times.push_back(1e-3 * end.milliseconds_since(begin));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void row(const std::string& what, double bytes, double flops, const std::function<void()>& body) {
    if (!only.empty() && what.find(only) == std::string::npos) return;
    const double time = seconds(body), floor = std::max(bytes / bandwidth_, flops / rate_);
    const bool by_bytes = bytes / bandwidth_ >= flops / rate_;
    std::printf("  %-34s %9.1f us %9.1f %s  floor %9.1f us  %5.1f %%\n", what.c_str(), time * 1e6, (by_bytes ? bytes * 1e-9 : flops * 1e-12) / time,
                by_bytes ? "GB/s   " : "TFLOP/s", floor * 1e6, 100 * floor / time);
  }

  std::string only;

 private:
  // Drawing gigabytes on the host would take longer than all the measurements.
  template <class T>
  static DeviceBuffer<T> repeated(std::int64_t n, const std::function<T(std::uint64_t)>& draw) {
    std::vector<T> first(static_cast<std::size_t>(std::min<std::int64_t>(n, 1 << 20)));
    for (std::size_t i = 0; i < first.size(); ++i) first[i] = draw(i);
    DeviceBuffer<T> values(n);
    const Stream stream;
    const auto size = static_cast<std::int64_t>(sizeof(T));
    copy_to_device(values.data(), first.data(), static_cast<std::int64_t>(first.size()) * size, stream);
    for (std::int64_t done = static_cast<std::int64_t>(first.size()); done < n; done *= 2)
      copy_on_device(values.data() + done, values.data(), std::min(done, n - done) * size, stream);
    stream.synchronize();
    return values;
  }

  const Stream stream_;
  const DeviceMemory flush_;
  double bandwidth_ = 1, rate_ = 1;
};

// An NF4 weight of random codes, double-quantized as a checkpoint's is.
struct Weight {
  DeviceBuffer<std::uint8_t> codes, scales;
  DeviceBuffer<float> map, absmax;
  Matrix view;
  Weight(std::int64_t n, std::int64_t k)
      : codes(Bench::random_bytes(n * k / 2)), scales(Bench::random_bytes(nf4_blocks(n * k))), map(std::vector<float>(kDynamicSigned.begin(), kDynamicSigned.end())),
        absmax(Bench::random_f32(dynamic_blocks(nf4_blocks(n * k)), 0.01f)) {
    view.dtype = Dtype::nf4;
    view.rows = n;
    view.cols = k;
    view.data = codes.data();
    view.nf4 = {nullptr, scales.data(), map.data(), absmax.data(), 0.05f};
  }
};

void weights(Bench& bench, const Model& m) {
  const std::pair<const char*, std::pair<std::int64_t, std::int64_t>> shapes[] = {
      {"qkv", {m.qkv(), m.hidden}}, {"o", {m.hidden, m.heads * m.head_dim}}, {"gate_up", {2 * m.ffn, m.hidden}}, {"down", {m.hidden, m.ffn}}};
  for (const auto& [name, shape] : shapes) {
    const auto [n, k] = shape;
    const Weight weight(n, k);
    const DeviceBuffer<bf16> scratch((n + kTail) * (k + kTail));
    const auto values = static_cast<double>(n * k);
    const View<bf16> out(scratch.data(), n, k, k + kTail);
    bench.row(std::string("nf4_dequantize ") + name, 2.516 * values, 0, [&] { nf4_dequantize(weight.view, out, bench.stream()); });
    const auto a = Bench::random_f32(kRank * k), b = Bench::random_f32(kRank * n);
    const LoraPart part{a.data(), b.data(), kRank, 1.0f, 0, n, 0};
    bench.row(std::string("lora_pack ") + name, static_cast<double>((4 * kRank + 2 * kTail) * (n + k)), 0,
              [&] { lora_pack({&part, 1}, View<bf16>(scratch.data(), n + kTail, k + kTail), kTail, bench.stream()); });
  }
  const std::int64_t p = m.lora_values;
  const auto params = Bench::random_f32(p), grads = Bench::random_f32(p);
  const DeviceBuffer<std::uint8_t> mc = Bench::random_bytes(p), vc = Bench::random_bytes(p);
  const auto ma = Bench::random_f32(dynamic_blocks(p)), va = Bench::random_f32(dynamic_blocks(p));
  const DeviceBuffer<AdamWConstants> constants(std::vector<AdamWConstants>{adamw_constants({.learning_rate = 1e-4f})});
  const DeviceBuffer<float> scale(std::vector<float>{1.0f});
  bench.row("adamw_8bit", 16.0 * static_cast<double>(p), 0, [&] {
    adamw_8bit(constants.data(), scale.data(), params.data(), grads.data(), mc.data(), vc.data(), ma.data(), va.data(), p, bench.stream());
  });
  const DeviceMemory pieces(sum_of_squares_workspace());
  const DeviceBuffer<double> sum(1);
  bench.row("sum_of_squares", 4.0 * static_cast<double>(p), 0, [&] { sum_of_squares(grads.data(), p, sum.data(), pieces.data(), bench.stream()); });
  const auto logits = Bench::random(kChunk * m.vocab, 2.0f);
  const DeviceBuffer<std::uint32_t> targets(std::vector<std::uint32_t>(kChunk, 5));
  const DeviceBuffer<float> ones(std::vector<float>(kChunk, 1.0f)), losses(kChunk);
  bench.row("cross_entropy 512 rows", 4.0 * static_cast<double>(kChunk * m.vocab), 0, [&] {
    cross_entropy(View<bf16>(logits.data(), kChunk, m.vocab), targets.data(), ones.data(), 0, LogitGradient::in_place, losses.data(), bench.stream());
  });
}

void products(Bench& bench, const Model& m, std::int64_t t) {
  Gemm gemm;
  const std::pair<const char*, std::pair<std::int64_t, std::int64_t>> shapes[] = {
      {"qkv", {m.qkv(), m.hidden}}, {"o", {m.hidden, m.heads * m.head_dim}}, {"gate_up", {2 * m.ffn, m.hidden}}, {"down", {m.hidden, m.ffn}}, {"head", {m.vocab, m.hidden}}};
  for (const auto& [name, shape] : shapes) {
    const bool head = std::strcmp(name, "head") == 0;
    const auto [n, k] = shape;
    const std::int64_t rows = head ? std::min(t, kChunk) : t, tail = head ? 0 : kTail;
    const auto x = Bench::random(rows * (k + tail)), w = Bench::random((n + tail) * (k + tail), 0.05f);
    const DeviceBuffer<bf16> y(rows * (n + tail));
    const View<bf16> in(x.data(), rows, k + tail), out(y.data(), rows, n + tail), scratch(w.data(), n + tail, k + tail);
    const std::int64_t bytes = std::max(Gemm::tune_bytes(GemmForm::nt, rows, n, k + tail, k + tail, k + tail, n + tail, false),
                                        Gemm::tune_bytes(GemmForm::nn, rows, k, n + tail, n + tail, k + tail, k + tail, false));
    const DeviceMemory tuning(bytes);
    gemm.tune(GemmForm::nt, rows, n, k + tail, k + tail, k + tail, n + tail, false, false, false, tuning.data(), bytes, bench.stream());
    gemm.tune(GemmForm::nn, rows, k, n + tail, n + tail, k + tail, k + tail, false, false, false, tuning.data(), bytes, bench.stream());
    const double flops = 2.0 * static_cast<double>(rows * n) * static_cast<double>(k);
    bench.row(std::string("product forward ") + name, 0, flops, [&] { gemm(GemmForm::nt, in, scratch.row_range(0, n), out.columns(0, n), bench.stream()); });
    bench.row(std::string("product backward ") + name, 0, flops, [&] { gemm(GemmForm::nn, out, scratch.columns(0, k), in.columns(0, k), bench.stream()); });
    bench.row(std::string("product mma forward ") + name, 0, flops,
              [&] { gemm_mma(GemmForm::nt, in, scratch.row_range(0, n), out.columns(0, n), 1.0f, 0.0f, nullptr, bench.stream()); });
    if (head) continue;
    const View<bf16> low = in.columns(k, kTail), dlow = out.columns(n, kTail);
    const auto sums = Bench::random_f32(kTail * (n + k)), grads = Bench::random_f32(kRank * (n + k));
    const View<float> of_a(sums.data(), kTail, k), of_b(of_a.row(kTail), kTail, n);
    bench.row(std::string("adapter forward ") + name, 2.0 * static_cast<double>(t * k), 0,
              [&] { gemm(GemmForm::nt, in.columns(0, k), scratch.row_range(n, kTail).columns(0, k), low, bench.stream()); });
    bench.row(std::string("adapter backward ") + name, 2.0 * static_cast<double>(t * n), 0,
              [&] { gemm(GemmForm::nn, out.columns(0, n), scratch.row_range(0, n).columns(k, kTail), dlow, bench.stream()); });
    bench.row(std::string("adapter sums ") + name, 2.0 * static_cast<double>(t * (n + k)), 0, [&] {
      gemm(GemmForm::tn, dlow, in.columns(0, k), of_a, bench.stream());
      gemm(GemmForm::tn, low, out.columns(0, n), of_b, bench.stream());
    });
    const LoraGradient parts[] = {{of_a.row_range(0, kRank), grads.data(), false, 1.0f}, {of_b.row_range(0, kRank), grads.data() + kRank * k, true, 1.0f}};
    bench.row(std::string("lora_add_gradients ") + name, 12.0 * static_cast<double>(kRank * (n + k)), 0, [&] { lora_add_gradients(parts, bench.stream()); });
  }
}

void activations(Bench& bench, const Model& m, std::int64_t t) {
  const auto bytes = [](double per_value, std::int64_t values) { return per_value * static_cast<double>(values); };
  const auto x = Bench::random(t * m.hidden), delta = Bench::random(t * m.hidden), y = Bench::random(t * (m.hidden + kTail));
  const DeviceBuffer<float> weight = Bench::random_f32(m.hidden), rstd = Bench::random_f32(t);
  const RmsNorm norm{weight.data(), 1e-6f, 0};
  const View<bf16> vx(x.data(), t, m.hidden), vd(delta.data(), t, m.hidden), vy(y.data(), t, m.hidden, m.hidden + kTail);
  bench.row("rmsnorm_forward with delta", bytes(8, t * m.hidden), 0, [&] { rmsnorm_forward(norm, vx, vd, vy, rstd.data(), bench.stream()); });
  bench.row("rmsnorm_backward accumulating", bytes(8, t * m.hidden), 0, [&] { rmsnorm_backward(norm, vx, rstd.data(), vy, vd, true, bench.stream()); });

  const auto gate_up = Bench::random(2 * t * m.ffn), gated = Bench::random(t * (m.ffn + kTail));
  const View<bf16> vgu(gate_up.data(), t, 2 * m.ffn), vg(gated.data(), t, m.ffn, m.ffn + kTail);
  bench.row("glu_forward", bytes(6, t * m.ffn), 0, [&] { glu_forward(Activation::silu, vgu, vg, bench.stream()); });
  bench.row("glu_backward", bytes(12, t * m.ffn), 0, [&] { glu_backward(Activation::silu, vg, vgu, vg, bench.stream()); });

  const QkvShape shape{m.heads, m.kv_heads, m.head_dim};
  const auto qkv = Bench::random(t * m.qkv());
  const View<bf16> vqkv(qkv.data(), t, m.qkv());
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(t));
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int32_t>(i % 1024);
  const DeviceBuffer<std::int32_t> positions(numbers);
  const auto cos = Bench::random_f32(1024 * m.head_dim / 2), sin = Bench::random_f32(1024 * m.head_dim / 2), bias = Bench::random_f32(m.qkv());
  QkvPost post;
  post.bias = bias.data();
  post.cos = cos.data();
  post.sin = sin.data();
  post.rotary_dim = m.head_dim;
  post.positions = positions.data();
  bench.row("qkv_post_forward", bytes(4, t * m.qkv()), 0, [&] { qkv_post_forward(shape, post, vqkv, vqkv, nullptr, bench.stream()); });
  bench.row("qkv_post_backward", bytes(4, t * (m.heads + m.kv_heads) * m.head_dim), 0, [&] { qkv_post_backward(shape, post, {}, nullptr, vqkv, bench.stream()); });
}

// Sequences of at most `longest` tokens; a causal product is half of a full one.
void rows_of_attention(Bench& bench, const Model& m, std::int64_t t, std::int64_t longest) {
  std::vector<std::int64_t> offsets{0};
  double pairs = 0;
  while (offsets.back() < t) {
    const std::int64_t length = std::min<std::int64_t>(longest, t - offsets.back());
    offsets.push_back(offsets.back() + length);
    pairs += 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
  }
  const auto tile_list = attention_tiles(offsets);
  const DeviceBuffer<AttentionTile> tile_table(tile_list);
  const AttentionTiles tiles{tile_table.data(), tile_table.size()};
  const std::int64_t q_size = m.heads * m.head_dim, kv_size = m.kv_heads * m.head_dim;
  const AttentionShape shape{m.heads, m.kv_heads, m.head_dim, 0.088f};
  const auto qkv = Bench::random(t * m.qkv()), out = Bench::random(t * q_size), dout = Bench::random(t * q_size), dqkv = Bench::random(t * m.qkv());
  const DeviceBuffer<float> lse = Bench::random_f32(t * m.heads);
  const View<bf16> vqkv(qkv.data(), t, m.qkv()), vo(out.data(), t, q_size), vdo(dout.data(), t, q_size), vdqkv(dqkv.data(), t, m.qkv());
  const View<bf16> q = vqkv.columns(0, q_size), k = vqkv.columns(q_size, kv_size), v = vqkv.columns(q_size + kv_size, kv_size);
  const double flops = 4.0 * pairs * static_cast<double>(q_size);
  const std::string rows = " " + std::to_string(offsets.size() - 1) + " rows";
  bench.row("attention_forward" + rows, 0, flops, [&] { attention_forward(shape, q, k, v, tiles, vo, lse.data(), bench.stream()); });
  const DeviceMemory workspace(attention_backward_workspace(shape, t));
  bench.row("attention_backward" + rows, 0, 2.5 * flops, [&] {
    attention_backward(shape, q, k, v, tiles, vo, lse.data(), vdo, vdqkv.columns(0, q_size), vdqkv.columns(q_size, kv_size), vdqkv.columns(q_size + kv_size, kv_size),
                       workspace.data(), bench.stream());
  });
}

int check(const char* self) {
  const std::string tests = (std::filesystem::canonical("/proc/self/exe").parent_path() / "cuda_device_test").string();
  ::execl(tests.c_str(), tests.c_str(), nullptr);
  std::fprintf(stderr, "%s: %s cannot be started\n", self, tests.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int64_t> tokens;
  std::string model, only;
  bool long_rows = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "check") return check(argv[0]);
    if (word == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (word == "--long")
      long_rows = true;
    else if (word == "--portable")
      attention::use_kernels(attention::Kernels::portable);
    else if (word == "7b" || word == "1.5b")
      model = word;
    else
      tokens.push_back(std::stoll(word));
  }
  if (tokens.empty()) tokens = {640, 2048, 8192};
  if (device_count() == 0) {
    std::fprintf(stderr, "%s: no CUDA device\n", argv[0]);
    return 1;
  }
  try {
    Bench bench;
    bench.only = only;
    for (const Model& m : kModels) {
      if (!model.empty() && model != m.name) continue;
      std::printf("%s, whatever the tokens\n", m.name);
      const bool all = only.find("attention") == std::string::npos;
      if (all) weights(bench, m);
      for (const std::int64_t t : tokens) {
        std::printf("%s, %lld tokens\n", m.name, static_cast<long long>(t));
        if (all) {
          products(bench, m, t);
          activations(bench, m, t);
        }
        rows_of_attention(bench, m, t, long_rows ? t : 1024);
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
