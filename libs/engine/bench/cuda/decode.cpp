// decode.cpp: what the kernels of token generation take at the shapes of a 7 B and a 1.5 B model, beside their floors.
//   bench_cuda_decode [7b|1.5b] [rows …] [--context N] [--only WORD]     default: 7b, rows 1 2 4 8 16 32 64, context 640
// Each figure is the time of one launch within a replayed graph of many, as generation runs them. Weights and caches are those of all layers, so that
// nothing stays in the second-level cache. Floors are bytes over the copy bandwidth, measured first, or operations over 600 TFLOP/s (mma.sync).
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/code_tables.h"
#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/runtime/device_buffer.h"
#include "ops/dynamic8.h"
#include "ops/nf4.h"

using namespace engine;        // NOLINT: a program
using namespace engine::cuda;  // NOLINT

namespace {

struct Model {
  const char* name;
  std::int64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
  std::int64_t qkv() const { return (heads + 2 * kv_heads) * head_dim; }
};
const Model kModels[] = {{"7b", 28, 3584, 18944, 28, 4, 128, 152064}, {"1.5b", 28, 1536, 8960, 12, 2, 128, 151936}};
constexpr double kRate = 600e12;
constexpr std::int64_t kRank = 16;

// Device memory of random bytes, the same 64 MiB over and over.
DeviceMemory random_memory(std::int64_t bytes, const Stream& stream, const std::function<void(std::vector<std::uint32_t>&)>& fill) {
  std::vector<std::uint32_t> words(static_cast<std::size_t>(std::min<std::int64_t>(bytes / 4 + 1, 16 << 20)));
  fill(words);
  DeviceMemory memory(bytes);
  const auto piece = static_cast<std::int64_t>(4 * words.size());
  for (std::int64_t at = 0; at < bytes; at += piece) copy_to_device(memory.as<std::uint8_t>() + at, words.data(), std::min(piece, bytes - at), stream);
  stream.synchronize();
  return memory;
}
void fill_random(std::vector<std::uint32_t>& words) {
  const Philox random{7, 3};
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = random.word(i);
}
// bf16 values between -0.5 and 0.5.
void fill_bf16(std::vector<std::uint32_t>& words) {
  const Philox random{7, 4};
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i] = to_bf16(random.uniform(2 * i) - 0.5f).bits | std::uint32_t{to_bf16(random.uniform(2 * i + 1) - 0.5f).bits} << 16;
}

struct Bench {
  Stream stream;
  double bandwidth = 1;
  std::string only;

  Bench() {
    const DeviceInfo info = device_info(0);
    const DeviceMemory from(std::int64_t{2} << 30), to(std::int64_t{2} << 30);
    const double time = seconds([&] { copy_on_device(to.data(), from.data(), from.bytes(), stream); });
    bandwidth = 2.0 * static_cast<double>(from.bytes()) / time;
    std::printf("%s, %d multiprocessors, copy %.2f TB/s\n", info.name.c_str(), info.multiprocessors, bandwidth * 1e-12);
  }

  // One replay of what `work` gives to the stream.
  double seconds(const std::function<void()>& work) {
    const Graph graph = Graph::capture(stream, work);
    const Event begin(Event::Timing::on), end(Event::Timing::on);
    for (int i = 0; i < 3; ++i) graph.launch(stream);
    std::vector<double> times;
    for (int i = 0; i < 7; ++i) {
      begin.record(stream);
      graph.launch(stream);
      end.record(stream);
      end.synchronize();
      times.push_back(1e-3 * end.milliseconds_since(begin));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // `launch(i)` is the i-th of `count` alike.
  void row(const std::string& what, std::int64_t count, double bytes, double flops, const std::function<void(std::int64_t)>& launch) {
    if (!only.empty() && what.find(only) == std::string::npos) return;
    const double time = seconds([&] {
                          for (std::int64_t i = 0; i < count; ++i) launch(i);
                        }) / static_cast<double>(count),
                 floor = std::max(bytes / bandwidth, flops / kRate);
    std::printf("  %-34s %9.2f us %8.1f GB/s %8.2f TFLOP/s   floor %8.2f us  %5.1f %%\n", what.c_str(), time * 1e6, bytes * 1e-9 / time, flops * 1e-12 / time, floor * 1e6,
                100 * floor / time);
    std::fflush(stdout);
  }
};

// The NF4 weights of all layers, double-quantized as a checkpoint's are.
struct Weights {
  DeviceMemory codes, scales, nested;
  DeviceBuffer<float> map;
  struct Layer {
    Matrix q, k, v, o, gate, up, down;
  };
  std::vector<Layer> layers;

  Weights(const Model& m, const Stream& stream) : map(std::vector<float>(kDynamicSigned.begin(), kDynamicSigned.end())) {
    const std::int64_t values = m.layers * (m.qkv() * m.hidden + m.hidden * m.heads * m.head_dim + 3 * m.ffn * m.hidden);
    codes = random_memory(values / 2, stream, fill_random);
    scales = random_memory(nf4_blocks(values), stream, fill_random);
    nested = random_memory(4 * (dynamic_blocks(nf4_blocks(values)) + 8 * m.layers), stream, [](std::vector<std::uint32_t>& words) {
      for (std::uint32_t& word : words) word = std::bit_cast<std::uint32_t>(0.01f);
    });
    std::int64_t first = 0, group = 0;
    const auto take = [&](std::int64_t n, std::int64_t k) {
      Matrix w;
      w.dtype = Dtype::nf4;
      w.rows = n;
      w.cols = k;
      w.data = codes.as<std::uint8_t>() + first / 2;
      w.nf4 = {nullptr, scales.as<std::uint8_t>() + first / kNf4Block, map.data(), nested.as<float>() + group, 0.02f};
      first += n * k;
      group += dynamic_blocks(nf4_blocks(n * k));
      return w;
    };
    for (std::int64_t i = 0; i < m.layers; ++i) {
      Layer l;
      l.q = take(m.heads * m.head_dim, m.hidden);
      l.k = take(m.kv_heads * m.head_dim, m.hidden);
      l.v = take(m.kv_heads * m.head_dim, m.hidden);
      l.o = take(m.hidden, m.heads * m.head_dim);
      l.gate = take(m.ffn, m.hidden);
      l.up = take(m.ffn, m.hidden);
      l.down = take(m.hidden, m.ffn);
      layers.push_back(l);
    }
  }
};

constexpr double kNf4Bytes = 0.5 + 1.0 / 64 + 4.0 / 64 / 256;

struct Buffers {
  DeviceMemory x, qkv, attended, gated, low, workspace;
  DeviceBuffer<float> norm;
  DeviceBuffer<LoraEntry> entries;
  DeviceMemory adapter_values;

  Buffers(const Model& m, std::int64_t rows, const Stream& stream)
      : x(random_memory(2 * rows * m.hidden, stream, fill_bf16)), qkv(2 * rows * m.qkv()), attended(random_memory(2 * rows * m.heads * m.head_dim, stream, fill_bf16)),
        gated(random_memory(2 * rows * m.ffn, stream, fill_bf16)), low(2 * rows * 3 * kRank), workspace(std::max<std::int64_t>(nf4_gemv_workspace(rows), 16)),
        norm(std::vector<float>(static_cast<std::size_t>(m.hidden), 1.0f)) {
    fill_bytes(workspace.data(), 0, workspace.bytes(), stream);
  }
};

void products(Bench& bench, const Model& m, const Weights& w, std::int64_t rows) {
  const Buffers b(m, rows, bench.stream);
  const RmsNorm norm{rows <= kGemvNormRows ? b.norm.data() : nullptr, 1e-6f, 0.0f};
  const View<const bf16> x(b.x.as<bf16>(), rows, m.hidden), attended(b.attended.as<bf16>(), rows, m.heads * m.head_dim), gated(b.gated.as<bf16>(), rows, m.ffn);
  const View<bf16> qkv(b.qkv.as<bf16>(), rows, m.qkv()), sum(b.x.as<bf16>(), rows, m.hidden), out(b.gated.as<bf16>(), rows, m.ffn);
  const auto layer = [&](std::int64_t i) -> const Weights::Layer& { return w.layers[static_cast<std::size_t>(i % m.layers)]; };
  const auto run_qkv = [&](std::int64_t i) { nf4_gemv(x, {layer(i).q, layer(i).k, layer(i).v}, qkv, {.norm = norm, .workspace = b.workspace.data()}, bench.stream); };
  const auto run_o = [&](std::int64_t i) { nf4_gemv(attended, {layer(i).o}, sum, {.residual = sum, .workspace = b.workspace.data()}, bench.stream); };
  const auto run_gate_up = [&](std::int64_t i) {
    nf4_gemv_gated(Activation::silu, x, {layer(i).gate, layer(i).up}, out, {.norm = norm, .workspace = b.workspace.data()}, bench.stream);
  };
  const auto run_down = [&](std::int64_t i) { nf4_gemv(gated, {layer(i).down}, sum, {.residual = sum, .workspace = b.workspace.data()}, bench.stream); };
  const auto row = [&](const char* name, std::int64_t n, std::int64_t k, const std::function<void(std::int64_t)>& run) {
    const auto values = static_cast<double>(n * k);
    bench.row(std::string("nf4_gemv ") + name + " rows " + std::to_string(rows), 2 * m.layers, kNf4Bytes * values, 2 * values * static_cast<double>(rows), run);
  };
  row("qkv", m.qkv(), m.hidden, run_qkv);
  row("o", m.hidden, m.heads * m.head_dim, run_o);
  row("gate_up", 2 * m.ffn, m.hidden, run_gate_up);
  row("down", m.hidden, m.ffn, run_down);
  const auto values = static_cast<double>(m.qkv() * m.hidden + m.hidden * m.heads * m.head_dim + 3 * m.ffn * m.hidden);
  bench.row("nf4_gemv layer rows " + std::to_string(rows), m.layers, kNf4Bytes * values, 2 * values * static_cast<double>(rows), [&](std::int64_t i) {
    run_qkv(i);
    run_o(i);
    run_gate_up(i);
    run_down(i);
  });
}

// Sequences of `context` tokens each, one row of each, over a cache of all layers.
void attention(Bench& bench, const Model& m, std::int64_t rows, std::int64_t context) {
  const AttentionShape shape{.heads = m.heads, .kv_heads = m.kv_heads, .head_dim = m.head_dim, .scale = 0.088f};
  const std::int64_t pages_each = (context + kPageTokens - 1) / kPageTokens, pages = rows * pages_each;
  const std::int64_t layer_elements = pages * 2 * kPageTokens * m.kv_heads * m.head_dim;
  const DeviceMemory cache = random_memory(2 * m.layers * layer_elements, bench.stream, fill_bf16), qkv = random_memory(2 * rows * m.qkv(), bench.stream, fill_bf16);
  const DeviceMemory out(2 * rows * m.heads * m.head_dim), workspace(paged_attention_workspace(shape, rows, context));
  fill_bytes(workspace.data(), 0, workspace.bytes(), bench.stream);
  std::vector<std::int32_t> tables(static_cast<std::size_t>(pages)), sequences, positions;
  for (std::size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<std::int32_t>(i * 7919 % tables.size());  // a permutation unless 7919 divides them
  for (std::int64_t r = 0; r < rows; ++r) {
    sequences.push_back(static_cast<std::int32_t>(r));
    positions.push_back(static_cast<std::int32_t>(context - 1));
  }
  const DeviceBuffer<std::int32_t> device_tables(tables), device_sequences(sequences), device_positions(positions);
  const PagedRows paged{device_sequences.data(), device_positions.data(), device_tables.data(), pages_each};
  const DeviceBuffer<float> cos(std::vector<float>(static_cast<std::size_t>(context * m.head_dim / 2), 0.8f)), sin(std::vector<float>(static_cast<std::size_t>(context * m.head_dim / 2), 0.6f));
  const DeviceBuffer<float> bias(std::vector<float>(static_cast<std::size_t>(m.qkv()), 0.1f));
  QkvPost post;
  post.bias = bias.data();
  post.cos = cos.data();
  post.sin = sin.data();
  post.rotary_dim = m.head_dim;
  const View<bf16> all(qkv.as<bf16>(), rows, m.qkv());
  const auto layer = [&](std::int64_t i) { return KvPages{cache.as<bf16>() + i % m.layers * layer_elements, m.kv_heads, m.head_dim}; };
  const std::string count = " rows " + std::to_string(rows);
  bench.row("qkv_post_paged" + count, 2 * m.layers, 4.0 * static_cast<double>(rows * m.qkv()), 0,
            [&](std::int64_t i) { qkv_post_paged({m.heads, m.kv_heads, m.head_dim}, post, all, paged, layer(i), bench.stream); });
  bench.row("paged_attention_decode" + count, 2 * m.layers, 4.0 * static_cast<double>(rows * context * m.kv_heads * m.head_dim),
            4.0 * static_cast<double>(rows * context * m.heads * m.head_dim), [&](std::int64_t i) {
              paged_attention_decode(shape, all.columns(0, m.heads * m.head_dim), paged, layer(i), View<bf16>(out.as<bf16>(), rows, m.heads * m.head_dim), context,
                                     workspace.data(), bench.stream);
            });
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int64_t> row_counts;
  std::string model = "7b", only;
  std::int64_t context = 640;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (word == "--context" && i + 1 < argc)
      context = std::stoll(argv[++i]);
    else if (word == "7b" || word == "1.5b")
      model = word;
    else
      row_counts.push_back(std::stoll(word));
  }
  if (row_counts.empty()) row_counts = {1, 2, 4, 8, 16, 32, 64};
  if (device_count() == 0) {
    std::fprintf(stderr, "%s: no CUDA device\n", argv[0]);
    return 1;
  }
  try {
    Bench bench;
    bench.only = only;
    for (const Model& m : kModels) {
      if (model != m.name) continue;
      const Weights weights(m, bench.stream);
      for (const std::int64_t rows : row_counts) {
        std::printf("%s, %lld rows, context %lld\n", m.name, static_cast<long long>(rows), static_cast<long long>(context));
        products(bench, m, weights, rows);
        attention(bench, m, rows, context);
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
