// decode.cpp: what the kernels of token generation take at the shapes of a 7 B and a 1.5 B model, beside their floors.
//   bench_cuda_decode [7b|1.5b] [rows …] [--context N] [--only WORD] [--chain LETTERS] [--adapters N] [--untuned]     default: 7b, rows 1 2 4 8 16 32 64, context 640
// With --chain only what some kernels of a layer take one after another: q(kv), p(lace), a(ttention), s(tep of attention, those
// two in one; S: sums in one order for any rows), o, g(ate_up), d(own), as in --chain qsogd; over bf16 copies n(orm), Q, O, G, D and u (the activation), each by itself, as in --chain nQsOnGuD, with
// algorithms chosen by timing unless --untuned; h and H: the head by the engine's kernel and by the library.
// With --adapters rows have as many different ones of rank 16, side by side; several such options are measured one after another.
//   bench_cuda_decode [7b|1.5b] --prompt N     attention of a prompt
// From 32 rows on, the products of bf16 copies of the weights too; beyond 64 those alone.
// Each figure is the time of one launch within a replayed graph of many, as generation runs them. Weights and caches are those of all layers, so that
// nothing stays in the second-level cache. Floors are bytes over the copy bandwidth, measured first, or operations over 600 TFLOP/s (mma.sync).
#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/code_tables.h"
#include "core/error.h"
#include "core/rng.h"
#include "cuda/ops/embed.h"
#include "cuda/ops/gemm.h"
#include "cuda/ops/glu.h"
#include "cuda/ops/head_gemv.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/ops/sample.h"
#include "cuda/runtime/device_buffer.h"
#include "cuda/runtime/launch.h"
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
  double bandwidth = 1, last = 0;  // last: seconds of the row before, 0 when it was left out
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
    last = 0;
    if (!only.empty() && what.find(only) == std::string::npos) return;
    const double time = seconds([&] {
                          for (std::int64_t i = 0; i < count; ++i) launch(i);
                        }) / static_cast<double>(count),
                 floor = std::max(bytes / bandwidth, flops / kRate);
    std::printf("  %-34s %9.2f us %8.1f GB/s %8.2f TFLOP/s   floor %8.2f us  %5.1f %%\n", what.c_str(), time * 1e6, bytes * 1e-9 / time, flops * 1e-12 / time, floor * 1e6,
                100 * floor / time);
    std::fflush(stdout);
    last = time;
  }
};

// The NF4 weights of all layers, double-quantized as a checkpoint's are.
struct Weights {
  DeviceMemory codes, scales, nested;
  DeviceBuffer<float> map;
  struct Layer {
    Matrix q, k, v, o, gate, up, down;
    PackedNf4 packed_qkv, packed_o, packed_gate_up, packed_down;
  };
  std::vector<Layer> layers;
  DeviceMemory packed;

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
    DeviceArena counter;
    pack(counter, nullptr);
    packed = DeviceMemory(counter.used());
    DeviceArena arena(packed.data(), packed.bytes());
    pack(arena, &stream);
  }

 private:
  void pack(DeviceArena& arena, const Stream* stream) {
    const auto one = [&](const Nf4Parts& parts, bool gated) {
      std::vector<std::int64_t> rows;
      for (const Matrix& part : parts)
        if (part.data != nullptr) rows.push_back(part.rows);
      PackedNf4 to = take_packed(arena, rows, parts[0].cols, gated);
      if (stream != nullptr) nf4_pack(parts, to, *stream);
      return to;
    };
    for (Layer& l : layers) {
      l.packed_qkv = one({l.q, l.k, l.v}, false);
      l.packed_o = one({l.o}, false);
      l.packed_gate_up = one({l.gate, l.up}, true);
      l.packed_down = one({l.down}, false);
    }
  }
};

constexpr double kNf4Bytes = 0.5 + 2.0 / 64;

// The weights of all layers as bf16 copies, which the library multiplies.
struct Copies {
  struct Product {
    std::int64_t n, k, first;  // first: its weights of all layers, among all
  };
  std::int64_t layers, values = 0;
  std::array<Product, 4> products;  // qkv, o, gate_up, down
  DeviceMemory weights, gate_up;
  Gemm gemm;

  Copies(const Model& m, std::int64_t rows, bool tuned, const Stream& stream)
      : layers(m.layers), products{{{m.qkv(), m.hidden, 0}, {m.hidden, m.heads * m.head_dim, 0}, {2 * m.ffn, m.hidden, 0}, {m.hidden, m.ffn, 0}}}, gate_up(4 * rows * m.ffn) {
    for (Product& p : products) {
      p.first = values * layers;
      values += p.n * p.k;
    }
    weights = random_memory(2 * layers * values, stream, fill_bf16);
    if (!tuned) return;
    std::int64_t bytes = 0;
    bytes = Gemm::tune_bytes(GemmForm::nt, rows, m.vocab, m.hidden, m.hidden, m.hidden, m.vocab, true);
    for (const Product& p : products) bytes = std::max(bytes, Gemm::tune_bytes(GemmForm::nt, rows, p.n, p.k, p.k, p.k, p.n, false));
    const DeviceMemory scratch(bytes);
    for (const Product& p : products)
      gemm.tune(GemmForm::nt, rows, p.n, p.k, p.k, p.k, p.n, false, p.n == m.hidden, false, scratch.data(), scratch.bytes(), stream);
    gemm.tune(GemmForm::nt, rows, m.vocab, m.hidden, m.hidden, m.hidden, m.vocab, true, false, false, scratch.data(), scratch.bytes(), stream);
  }
  void multiply(std::size_t product, std::int64_t i, View<const bf16> from, View<bf16> to, float beta, cudaStream_t stream) {
    const Product& p = products[product];
    gemm(GemmForm::nt, from, View<const bf16>(weights.as<bf16>() + p.first + i % layers * p.n * p.k, p.n, p.k), to, stream, 1.0f, beta);
  }
};

// One row of each of `rows` sequences of `context` tokens, and what a step needs beside the weights.
struct Step {
  const Model& m;
  const Weights& w;
  std::int64_t rows;
  cudaStream_t stream;
  AttentionShape attention;
  std::int64_t layer_elements;
  DeviceMemory x, normed, qkv, attended, gated, workspace, cache, attention_workspace, head, logits, sample_workspace;
  DeviceBuffer<float> norm, bias, cos, sin;
  DeviceBuffer<std::int32_t> tables, sequences, positions;
  DeviceBuffer<SampleSettings> settings;
  DeviceBuffer<std::uint32_t> ids, tokens;
  DeviceBuffer<float> logprobs;
  // Adapters of rank kRank on everything, one for each row: as many different ones as `adapters` says.
  DeviceMemory adapter_values, low;
  DeviceBuffer<LoraEntry> entries;
  DeviceBuffer<std::int32_t> adapter;
  bool adapted = false;
  std::int64_t pages_each;

  Step(const Model& model, const Weights& weights, std::int64_t count, std::int64_t context, std::int64_t adapters, const SampleSettings& setting, const Stream& on)
      : m(model), w(weights), rows(count), stream(on), attention{.heads = m.heads, .kv_heads = m.kv_heads, .head_dim = m.head_dim, .scale = 0.088f},
        layer_elements(rows * ((context + kPageTokens - 1) / kPageTokens) * 2 * kPageTokens * m.kv_heads * m.head_dim),
        x(random_memory(2 * rows * m.hidden, on, fill_bf16)), normed(random_memory(2 * rows * m.hidden, on, fill_bf16)), qkv(random_memory(2 * rows * m.qkv(), on, fill_bf16)),
        attended(random_memory(2 * rows * m.heads * m.head_dim, on, fill_bf16)), gated(random_memory(2 * rows * m.ffn, on, fill_bf16)),
        workspace(std::max<std::int64_t>(nf4_gemv_workspace(rows, m.ffn), 16)), cache(random_memory(2 * m.layers * layer_elements, on, fill_bf16)),
        attention_workspace(paged_attention_workspace(attention, rows, context)), head(random_memory(2 * m.vocab * m.hidden, on, fill_bf16)), logits(4 * rows * m.vocab),
        sample_workspace(engine::cuda::sample_workspace(rows, m.vocab)), norm(std::vector<float>(static_cast<std::size_t>(m.hidden), 1.0f)),
        bias(std::vector<float>(static_cast<std::size_t>(m.qkv()), 0.1f)), cos(std::vector<float>(static_cast<std::size_t>(context * m.head_dim / 2), 0.8f)),
        sin(std::vector<float>(static_cast<std::size_t>(context * m.head_dim / 2), 0.6f)),
        settings(std::vector<SampleSettings>(static_cast<std::size_t>(rows), setting)),
        ids(std::vector<std::uint32_t>(static_cast<std::size_t>(rows), 1000)), tokens(rows), logprobs(rows), low(2 * rows * 3 * kRank),
        pages_each((context + kPageTokens - 1) / kPageTokens) {
    fill_bytes(workspace.data(), 0, workspace.bytes(), stream);
    fill_bytes(attention_workspace.data(), 0, attention_workspace.bytes(), stream);
    std::vector<std::int32_t> table(static_cast<std::size_t>(rows * pages_each)), of, at, own;
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i * 7919 % table.size());  // a permutation unless 7919 divides them
    for (std::int64_t r = 0; r < rows; ++r) {
      of.push_back(static_cast<std::int32_t>(r));
      at.push_back(static_cast<std::int32_t>(context - 1));
      own.push_back(static_cast<std::int32_t>(adapters > 0 ? r * adapters / rows : -1));  // side by side, as the runner has them
    }
    tables = DeviceBuffer<std::int32_t>(table);
    sequences = DeviceBuffer<std::int32_t>(of);
    positions = DeviceBuffer<std::int32_t>(at);
    adapter = DeviceBuffer<std::int32_t>(own);
    adapted = adapters > 0;
    if (!adapted) return;
    // Entries [layer][group: qkv, o, gate_up, down][adapter][part], values one after another.
    const std::int64_t each = kRank * (3 * m.hidden + m.qkv() + 2 * m.hidden + 2 * (m.hidden + m.ffn) + m.hidden + m.ffn + 2 * m.hidden);
    adapter_values = random_memory(2 * adapters * m.layers * each, on, fill_bf16);
    std::vector<LoraEntry> list;
    bf16* next = adapter_values.as<bf16>();
    const auto add = [&](std::int64_t n, std::int64_t k) {
      list.push_back({next, next + kRank * k, static_cast<std::int32_t>(kRank), 0.1f});
      next += kRank * (n + k);
    };
    for (std::int64_t layer = 0; layer < m.layers; ++layer) {
      const std::int64_t kv = m.kv_heads * m.head_dim, q = m.heads * m.head_dim;
      for (std::int64_t a = 0; a < adapters; ++a) {
        add(q, m.hidden);
        add(kv, m.hidden);
        add(kv, m.hidden);
      }
      for (std::int64_t a = 0; a < adapters; ++a) add(m.hidden, q);
      for (std::int64_t a = 0; a < adapters; ++a) {
        add(m.ffn, m.hidden);
        add(m.ffn, m.hidden);
      }
      for (std::int64_t a = 0; a < adapters; ++a) add(m.hidden, m.ffn);
    }
    entries = DeviceBuffer<LoraEntry>(list);
    count_of_adapters_ = adapters;
  }

  View<bf16> view(const DeviceMemory& memory, std::int64_t cols) const { return {memory.as<bf16>(), rows, cols}; }
  const Weights::Layer& layer(std::int64_t i) const { return w.layers[static_cast<std::size_t>(i % m.layers)]; }
  bool folds() const { return rows <= kGemvNormRows; }
  RmsNorm norm_of() const { return {norm.data(), 1e-6f, 0.0f}; }
  // What a product of a group's input adds, its shrink given to the stream first.
  GemvExtras extras(std::int64_t i, int group, View<const bf16> in, bool normalized) const {
    GemvExtras e{.norm = normalized && folds() ? norm_of() : RmsNorm{}, .workspace = workspace.data()};
    if (!adapted) return e;
    constexpr std::int64_t parts[] = {3, 1, 2, 1}, before[] = {0, 3, 4, 6};
    e.adapters = {entries.data() + count_of_adapters_ * (7 * (i % m.layers) + before[group]), adapter.data(), parts[group], kRank};
    if (nf4_gemv_shrinks(rows, in.cols, e.adapters)) return e;
    e.low = View<const bf16>(low.as<bf16>(), rows, parts[group] * kRank);
    lora_rows_shrink(in, e.norm, e.adapters, View<bf16>(low.as<bf16>(), rows, parts[group] * kRank), stream);
    return e;
  }
  View<const bf16> input() const {  // of qkv, gate_up and the head
    if (folds()) return view(x, m.hidden);
    rmsnorm_forward(norm_of(), view(x, m.hidden), {}, view(normed, m.hidden), nullptr, stream);
    return view(normed, m.hidden);
  }

  void run_qkv(std::int64_t i, View<const bf16> in) const {
    nf4_gemv(in, layer(i).packed_qkv, view(qkv, m.qkv()), extras(i, 0, in, true), stream);
  }
  void run_place(std::int64_t i) const {
    qkv_post_paged({m.heads, m.kv_heads, m.head_dim}, post(), view(qkv, m.qkv()), paged(), pages(i), stream);
  }
  // The two in one.
  void run_attend(std::int64_t i, std::int64_t context, bool any_order = true) const {
    paged_attention_step(attention, post(), view(qkv, m.qkv()), paged(any_order), pages(i), view(attended, m.heads * m.head_dim), context, attention_workspace.data(), stream);
  }
  void run_attention(std::int64_t i, std::int64_t context) const {
    paged_attention_decode(attention, view(qkv, m.qkv()).columns(0, m.heads * m.head_dim), paged(), pages(i), view(attended, m.heads * m.head_dim), context,
                           attention_workspace.data(), stream);
  }
  void run_copy(Copies& copies, std::int64_t i, char letter) const {
    switch (letter) {
      case 'H':
        copies.gemm(GemmForm::nt, view(normed, m.hidden), View<const bf16>(head.as<bf16>(), m.vocab, m.hidden), View<float>(logits.as<float>(), rows, m.vocab), stream);
        break;
      case 'Q': copies.multiply(0, i, view(normed, m.hidden), view(qkv, m.qkv()), 0.0f, stream); break;
      case 'O': copies.multiply(1, i, view(attended, m.heads * m.head_dim), view(x, m.hidden), 1.0f, stream); break;
      case 'G': copies.multiply(2, i, view(normed, m.hidden), view(copies.gate_up, 2 * m.ffn), 0.0f, stream); break;
      case 'D': copies.multiply(3, i, view(gated, m.ffn), view(x, m.hidden), 1.0f, stream); break;
      default: glu_forward(Activation::silu, view(copies.gate_up, 2 * m.ffn), view(gated, m.ffn), stream);
    }
  }
  void run_o(std::int64_t i) const { onto_sum(i, 1, layer(i).packed_o, view(attended, m.heads * m.head_dim)); }
  void run_gate_up(std::int64_t i, View<const bf16> in) const {
    nf4_gemv_gated(Activation::silu, in, layer(i).packed_gate_up, view(gated, m.ffn), extras(i, 2, in, true), stream);
  }
  void run_down(std::int64_t i) const { onto_sum(i, 3, layer(i).packed_down, view(gated, m.ffn)); }
  void run_letters(std::int64_t i, const std::string& letters, std::int64_t context, Copies* copies) const {
    for (const char letter : letters) switch (letter) {
        case 'q': run_qkv(i, input()); break;
        case 'p': run_place(i); break;
        case 'a': run_attention(i, context); break;
        case 's': run_attend(i, context); break;
        case 'S': run_attend(i, context, false); break;
        case 'o': run_o(i); break;
        case 'g': run_gate_up(i, input()); break;
        case 'd': run_down(i); break;
        case 'n': rmsnorm_forward(norm_of(), view(x, m.hidden), {}, view(normed, m.hidden), nullptr, stream); break;
        case 'h':
          head_gemv(view(normed, m.hidden), View<const bf16>(head.as<bf16>(), m.vocab, m.hidden), 0, View<float>(logits.as<float>(), rows, m.vocab), stream);
          break;
        case 'Q': case 'O': case 'H': case 'G': case 'u': case 'D': run_copy(*copies, i, letter); break;
        default: throw Error(Code::invalid, text("no kernel is called ", letter));
      }
  }
  void run_head() const {
    rmsnorm_forward(norm_of(), view(x, m.hidden), {}, view(normed, m.hidden), nullptr, stream);
    head_gemv(view(normed, m.hidden), View<const bf16>(head.as<bf16>(), m.vocab, m.hidden), 0, View<float>(logits.as<float>(), rows, m.vocab), stream);
  }
  void run_sample() const {
    sample(View<const float>(logits.as<float>(), rows, m.vocab), settings.data(), positions.data(), tokens.data(), logprobs.data(), sample_workspace.data(), stream);
  }
  void run(std::int64_t context) const {
    embed_forward(View<const bf16>(head.as<bf16>(), m.vocab, m.hidden), ids.data(), 1.0f, view(x, m.hidden), stream);  // also keeps x from growing, run after run
    for (std::int64_t i = 0; i < m.layers; ++i) {
      run_qkv(i, input());
      run_attend(i, context);
      run_o(i);
      run_gate_up(i, input());
      run_down(i);
    }
    run_head();
    run_sample();
  }

 private:
  std::int64_t count_of_adapters_ = 0;
  PagedRows paged(bool any_order = false) const { return {sequences.data(), positions.data(), tables.data(), pages_each, true, any_order}; }
  QkvPost post() const { return {.bias = bias.data(), .cos = cos.data(), .sin = sin.data(), .rotary_dim = m.head_dim}; }
  KvPages pages(std::int64_t i) const { return {cache.as<bf16>() + i % m.layers * layer_elements, m.kv_heads, m.head_dim}; }
  void onto_sum(std::int64_t i, int group, const PackedNf4& weight, View<const bf16> in) const {
    GemvExtras e = extras(i, group, in, false);
    e.residual = view(x, m.hidden);
    nf4_gemv(in, weight, view(x, m.hidden), e, stream);
  }
};

// Logits about normal, of deviation 2.5. `sure`: three tokens of each row stand out by 16 to 20, as where a model knows how to go on.
DeviceMemory logits_like_a_models(std::int64_t rows, std::int64_t vocab, bool sure, const Stream& stream) {
  const Philox random{7, 5};
  std::vector<float> row(static_cast<std::size_t>(vocab));
  for (std::size_t i = 0; i < row.size(); ++i) {
    float sum = 0;
    for (std::uint64_t j = 0; j < 12; ++j) sum += random.uniform(12 * i + j) - 0.5f;
    row[i] = 2.5f * sum;
  }
  if (sure)
    for (std::size_t i = 0; i < 3; ++i) row[row.size() / 4 * (i + 1)] = 16.0f + 2.0f * static_cast<float>(i);
  DeviceMemory memory(4 * rows * vocab);
  for (std::int64_t r = 0; r < rows; ++r) copy_to_device(memory.as<float>() + r * vocab, row.data(), 4 * vocab, stream);
  stream.synchronize();
  return memory;
}

void sampling_figures(Bench& bench, const Model& m, std::int64_t rows) {
  const DeviceMemory workspace(sample_workspace(rows, m.vocab));
  const DeviceBuffer<std::int32_t> positions(std::vector<std::int32_t>(static_cast<std::size_t>(rows), 640));
  const DeviceBuffer<std::uint32_t> tokens(rows);
  const DeviceBuffer<float> logprobs(rows);
  for (const bool sure : {true, false}) {
    const DeviceMemory logits = logits_like_a_models(rows, m.vocab, sure, bench.stream);
    const auto kind = [&](const char* name, double passes, const SampleSettings& setting) {
      const DeviceBuffer<SampleSettings> settings(std::vector<SampleSettings>(static_cast<std::size_t>(rows), setting));
      bench.row(std::string("sample ") + name + (sure ? ", sure" : ", unsure") + " rows " + std::to_string(rows), 8, 4.0 * passes * static_cast<double>(rows * m.vocab), 0,
                [&](std::int64_t) {
                  sample(View<const float>(logits.as<float>(), rows, m.vocab), settings.data(), positions.data(), tokens.data(), logprobs.data(), workspace.data(), bench.stream);
                });
    };
    kind("greedy", 1, {7, 0, 1, 0, 0});
    kind("all", 2, {7, 0.7, 1, 0, 0});
    kind("top-k, top-p", 2, {7, 0.7, 0.95, 0, 40});
    kind("top-p", 2, {7, 0.7, 0.95, 0, 0});
    kind("top-p 0.9999, hot", 2, {7, 1.5, 0.9999, 0, 0});
    kind("min-p", 2, {7, 0.7, 1, 0.05, 0});
  }
}

// The products of a layer from bf16 copies of the weights, by the library with algorithms chosen by timing: from some number of rows on they are the faster.
void bf16_figures(Bench& bench, const Model& m, std::int64_t rows) {
  struct Product {
    const char* name;
    std::int64_t n, k, first;  // first: its weights of all layers, among all
  };
  Product products[] = {{"qkv", m.qkv(), m.hidden, 0}, {"o", m.hidden, m.heads * m.head_dim, 0}, {"gate_up", 2 * m.ffn, m.hidden, 0}, {"down", m.hidden, m.ffn, 0}};
  const std::string count = " rows " + std::to_string(rows);
  const auto left_out = [&](const char* name) { return !bench.only.empty() && (std::string("bf16 ") + name + count).find(bench.only) == std::string::npos; };
  if (std::ranges::all_of(products, [&](const Product& p) { return left_out(p.name); }) && left_out("all of a layer")) return;
  std::int64_t values = 0, scratch_bytes = 0;
  for (Product& p : products) {
    p.first = values * m.layers;
    values += p.n * p.k;
    scratch_bytes = std::max(scratch_bytes, Gemm::tune_bytes(GemmForm::nt, rows, p.n, p.k, p.k, p.k, p.n, false));
  }
  const DeviceMemory weights = random_memory(2 * m.layers * values, bench.stream, fill_bf16), x = random_memory(2 * rows * m.ffn, bench.stream, fill_bf16), y(4 * rows * m.ffn),
                     scratch(scratch_bytes);
  Gemm gemm;
  for (const Product& p : products)
    gemm.tune(GemmForm::nt, rows, p.n, p.k, p.k, p.k, p.n, false, false, false, scratch.data(), scratch.bytes(), bench.stream);
  const auto run = [&](const Product& p, std::int64_t i) {
    gemm(GemmForm::nt, View<const bf16>(x.as<bf16>(), rows, p.k), View<const bf16>(weights.as<bf16>() + p.first + i % m.layers * p.n * p.k, p.n, p.k),
         View<bf16>(y.as<bf16>(), rows, p.n), bench.stream);
  };
  const auto flops = [&](std::int64_t of) { return 2.0 * static_cast<double>(of * rows); };
  for (const Product& p : products)
    bench.row(std::string("bf16 ") + p.name + count, 2 * m.layers, 2.0 * static_cast<double>(p.n * p.k), flops(p.n * p.k), [&](std::int64_t i) { run(p, i); });
  bench.row("bf16 all of a layer" + count, m.layers, 2.0 * static_cast<double>(values), flops(values), [&](std::int64_t i) {
    for (const Product& p : products) run(p, i);
  });
}

void figures(Bench& bench, const Model& m, const Weights& w, std::int64_t rows, std::int64_t context, std::int64_t adapters, const std::vector<std::string>& chains, bool tuned) {
  const std::string count = " rows " + std::to_string(rows);
  const auto b = static_cast<double>(rows);
  const Step step(m, w, rows, context, chains.empty() ? 0 : std::min(adapters, rows), {7, 0, 1, 0, 0}, bench.stream);
  if (!chains.empty()) {
    std::optional<Copies> copies;
    for (const std::string& letters : chains) {
      if (!copies && letters.find_first_of("QOGDuH") != std::string::npos) copies.emplace(m, rows, tuned, bench.stream);
      // Once outside the capture: the library loads what it uses.
      step.run_letters(0, letters, context, copies ? &*copies : nullptr);
      bench.row("chain " + letters + (adapters > 0 ? " adapters " + std::to_string(adapters) : "") + count, m.layers, 0, 0, [&](std::int64_t i) { step.run_letters(i, letters, context, copies ? &*copies : nullptr); });
    }
    return;
  }
  const View<const bf16> in = step.view(rows <= kGemvNormRows ? step.x : step.normed, m.hidden);
  const auto product = [&](const char* name, std::int64_t n, std::int64_t k, const std::function<void(std::int64_t)>& run) {
    const auto values = static_cast<double>(n * k);
    bench.row(std::string("nf4_gemv ") + name + count, 2 * m.layers, kNf4Bytes * values, 2 * values * b, run);
  };
  product("qkv", m.qkv(), m.hidden, [&](std::int64_t i) { step.run_qkv(i, in); });
  product("o", m.hidden, m.heads * m.head_dim, [&](std::int64_t i) { step.run_o(i); });
  product("gate_up", 2 * m.ffn, m.hidden, [&](std::int64_t i) { step.run_gate_up(i, in); });
  product("down", m.hidden, m.ffn, [&](std::int64_t i) { step.run_down(i); });
  const auto values = static_cast<double>(m.qkv() * m.hidden + m.hidden * m.heads * m.head_dim + 3 * m.ffn * m.hidden);
  bench.row("nf4_gemv all of a layer" + count, m.layers, kNf4Bytes * values, 2 * values * b, [&](std::int64_t i) {
    step.run_qkv(i, in);
    step.run_o(i);
    step.run_gate_up(i, in);
    step.run_down(i);
  });
  const double cached = 4.0 * static_cast<double>(rows * context * m.kv_heads * m.head_dim);
  bench.row("qkv_post_paged" + count, 2 * m.layers, 4.0 * static_cast<double>(rows * m.qkv()), 0, [&](std::int64_t i) { step.run_place(i); });
  bench.row("paged_attention_decode" + count, 2 * m.layers, cached, 4.0 * static_cast<double>(rows * context * m.heads * m.head_dim),
            [&](std::int64_t i) { step.run_attention(i, context); });
  bench.row("paged_attention_step" + count, 2 * m.layers, cached, 4.0 * static_cast<double>(rows * context * m.heads * m.head_dim),
            [&](std::int64_t i) { step.run_attend(i, context); });
  const double head = 2.0 * static_cast<double>(m.vocab * m.hidden);
  bench.row("head_gemv" + count, 4, head, head * b, [&](std::int64_t) { step.run_head(); });

  sampling_figures(bench, m, rows);

  const double step_bytes = static_cast<double>(m.layers) * (kNf4Bytes * values + cached) + head;
  const double step_flops = 2 * b * (static_cast<double>(m.layers) * values + static_cast<double>(m.vocab * m.hidden));
  const auto whole = [&](const std::string& what, const Step& of) {
    bench.row(what + count, 1, step_bytes, step_flops, [&](std::int64_t) { of.run(context); });
    if (bench.last > 0) std::printf("    %.0f tokens/s\n", b / bench.last);
  };
  whole("step greedy", step);
  const Step sampled(m, w, rows, context, 0, {7, 0.7, 0.95, 0, 40}, bench.stream);
  whole("step sampled", sampled);
  for (const std::int64_t adapters : {1, 8}) {
    if (adapters > rows) continue;
    const Step adapted(m, w, rows, context, adapters, {7, 0, 1, 0, 0}, bench.stream);
    const auto shrink = [&](const char* name, int group, std::int64_t depth, View<const bf16> x) {
      bench.row(std::string("lora_rows_shrink ") + name + count + " adapters " + std::to_string(adapters), 2 * m.layers, 2.0 * static_cast<double>(adapters * kRank * depth), 0,
                [&](std::int64_t i) { adapted.extras(i, group, x, group != 3); });
    };
    shrink("qkv", 0, 3 * m.hidden, in);
    shrink("gate_up", 2, 2 * m.hidden, in);
    shrink("down", 3, m.ffn, adapted.view(adapted.gated, m.ffn));
    whole("step with adapters " + std::to_string(adapters), adapted);
  }
}

// Attention of a prompt's tokens, after those that were read before.
void prompt_figures(Bench& bench, const Model& m, std::int64_t tokens, std::int64_t before) {
  const AttentionShape shape{.heads = m.heads, .kv_heads = m.kv_heads, .head_dim = m.head_dim, .scale = 0.088f};
  const std::int64_t all = before + tokens, count = ceil_div(all, kPageTokens), width = m.heads * m.head_dim, elements = count * 2 * kPageTokens * m.kv_heads * m.head_dim;
  const DeviceMemory q = random_memory(2 * tokens * width, bench.stream, fill_bf16), out(2 * tokens * width), cache = random_memory(2 * m.layers * elements, bench.stream, fill_bf16);
  std::vector<std::int32_t> table(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i * 7919 % table.size());
  const DeviceBuffer<std::int32_t> tables(table);
  const DeviceBuffer<PagedChunk> tiles(paged_tiles(std::vector<PagedChunk>{{0, static_cast<std::int32_t>(tokens), 0, static_cast<std::int32_t>(before)}}));
  const DeviceMemory workspace(paged_prefill_workspace(shape));
  bench.row("paged_attention_prefill " + std::to_string(tokens) + " after " + std::to_string(before), m.layers, 4.0 * static_cast<double>(tokens * width + all * m.kv_heads * m.head_dim),
            2.0 * static_cast<double>(tokens * (all + before)) * static_cast<double>(width), [&](std::int64_t i) {
              paged_attention_prefill(shape, View<const bf16>(q.as<bf16>(), tokens, width), tiles.data(), tiles.size(), all, tables.data(), count,
                                      {cache.as<bf16>() + i * elements, m.kv_heads, m.head_dim}, View<bf16>(out.as<bf16>(), tokens, width), workspace.data(), bench.stream);
            });
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int64_t> row_counts;
  std::vector<std::string> chains;
  std::string model = "7b", only;
  bool tuned = true;
  std::int64_t context = 640, prompt = 0;
  std::vector<std::int64_t> adapters;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (word == "--chain" && i + 1 < argc)
      chains.emplace_back(argv[++i]);
    else if (word == "--context" && i + 1 < argc)
      context = std::stoll(argv[++i]);
    else if (word == "--adapters" && i + 1 < argc)
      adapters.push_back(std::stoll(argv[++i]));
    else if (word == "--prompt" && i + 1 < argc)
      prompt = std::stoll(argv[++i]);
    else if (word == "--untuned")
      tuned = false;
    else if (word == "7b" || word == "1.5b")
      model = word;
    else
      row_counts.push_back(std::stoll(word));
  }
  if (adapters.empty() || chains.empty()) adapters = {0};
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
      if (prompt > 0) {
        prompt_figures(bench, m, prompt, 0);
        for (const std::int64_t chunk : {128, 256, 512, 2048})
          if (chunk < prompt) prompt_figures(bench, m, chunk, prompt - chunk);
        continue;
      }
      const Weights weights(m, bench.stream);
      for (const std::int64_t rows : row_counts) {
        std::printf("%s, %lld rows, context %lld\n", m.name, static_cast<long long>(rows), static_cast<long long>(context));
        if (rows <= kGemvRows)
          for (const std::int64_t count : adapters) figures(bench, m, weights, rows, context, count, chains, tuned);
        if (rows >= kGemvRows / 2 && chains.empty()) bf16_figures(bench, m, rows);
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
