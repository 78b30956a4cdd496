#include "cuda/ops/paged_attention.h"

#include <algorithm>
#include <cmath>

#include "cuda/ops/attention_arguments.h"
#include "cuda/ops/op_test.h"
#include "ops/attention_decode.h"
#include "ops/rope.h"

namespace engine::cuda {
namespace {

using namespace test;

// Sequences in a pool whose pages lie in no order, unwritten slots NaN: on the host as the CPU has it, and on the device.
class Pages {
 public:
  Pages(const AttentionShape& shape, const std::vector<std::int64_t>& lengths) : shape_(shape) {
    std::int64_t pages = 1;
    for (const std::int64_t n : lengths) {
      stride_ = std::max(stride_, (n + kPageTokens - 1) / kPageTokens);
      pages += (n + kPageTokens - 1) / kPageTokens;
    }
    host_ = KvPool{.dtype = Dtype::bf16, .data = nullptr, .blocks = pages, .block_tokens = kPageTokens, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim};
    values_.assign(static_cast<std::size_t>(host_.element_count()), bf16{0x7fc0});
    host_.data = values_.data();
    std::int32_t next = static_cast<std::int32_t>(pages);
    for (const std::int64_t n : lengths) {
      std::vector<std::int32_t> table;
      while (static_cast<std::int64_t>(table.size()) * kPageTokens < n) table.push_back(--next);
      std::vector<std::int32_t> padded = table;
      padded.resize(static_cast<std::size_t>(stride_), -1);
      flat_.insert(flat_.end(), padded.begin(), padded.end());
      tables_.push_back(std::move(table));
    }
    for (const auto& table : tables_) sequences_.push_back({table});
    device_tables_ = DeviceBuffer<std::int32_t>(flat_);
  }

  // Random keys and values for the first `lengths` tokens of every sequence.
  void fill(const std::vector<std::int64_t>& lengths) {
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      std::vector<KvRow> rows_of;
      for (std::int64_t p = 0; p < lengths[s]; ++p) rows_of.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(p)});
      const std::int64_t width = shape_.kv_heads * shape_.head_dim;
      const auto k = random_bf16(lengths[s] * width, 10 + s, 2.0f), v = random_bf16(lengths[s] * width, 20 + s);
      kv_write(cpu_bf16(), host_, sequences_, rows_of, rows(k, lengths[s], width), rows(v, lengths[s], width));
    }
    upload();
  }
  void upload() { device_ = DeviceBuffer<bf16>(values_); }

  const KvPool& host() const { return host_; }
  std::span<const KvSequence> sequences() const { return sequences_; }
  std::vector<bf16> read() const { return device_.read(stream()); }
  KvPages view() const { return {device_.data(), shape_.kv_heads, shape_.head_dim}; }
  const std::int32_t* tables() const { return device_tables_.data(); }
  std::int64_t stride() const { return stride_; }

 private:
  AttentionShape shape_;
  KvPool host_;
  std::int64_t stride_ = 0;
  std::vector<bf16> values_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::int32_t> flat_;
  std::vector<KvSequence> sequences_;
  DeviceBuffer<bf16> device_;
  DeviceBuffer<std::int32_t> device_tables_;
};

struct DeviceRowNumbers {
  DeviceBuffer<std::int32_t> sequence, position;
  explicit DeviceRowNumbers(const std::vector<KvRow>& of) {
    std::vector<std::int32_t> s, p;
    for (const KvRow& row : of) {
      s.push_back(row.sequence);
      p.push_back(row.position);
    }
    sequence = DeviceBuffer<std::int32_t>(s);
    position = DeviceBuffer<std::int32_t>(p);
  }
  PagedRows view(const Pages& pages, bool apart = false, bool any_order = false) const {
    return {sequence.data(), position.data(), pages.tables(), pages.stride(), apart, any_order};
  }
};

DeviceMemory zeroed(std::int64_t bytes) {
  DeviceMemory memory(bytes);
  fill_bytes(memory.data(), 0, bytes, stream());
  return memory;
}

const AttentionShape kShapes[] = {
    {.heads = 7, .kv_heads = 1, .head_dim = 64, .scale = 0.3f},
    {.heads = 4, .kv_heads = 4, .head_dim = 96, .scale = 0.1f, .window = 100},
    {.heads = 14, .kv_heads = 2, .head_dim = 128, .scale = 0.1f},
    {.heads = 20, .kv_heads = 1, .head_dim = 32, .scale = 0.2f, .window = 17, .softcap = 3.0f},
    {.heads = 2, .kv_heads = 1, .head_dim = 256, .scale = 0.06f, .softcap = 20.0f},
    {.heads = 24, .kv_heads = 2, .head_dim = 128, .scale = 0.1f, .window = 150},
    {.heads = 9, .kv_heads = 1, .head_dim = 16, .scale = 0.2f},
};

TEST("attention of single tokens over pages is the CPU's, whatever the lengths") {
  const std::vector<std::int64_t> lengths{1, 16, 17, 127, 300, 1};
  for (const AttentionShape& shape : kShapes) {
    Pages pages(shape, lengths);
    pages.fill(lengths);
    std::vector<KvRow> of;
    for (std::size_t s = 0; s < lengths.size(); ++s) of.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(lengths[s] - 1)});
    of.push_back({4, 150});  // a row in the middle of a sequence
    const auto n = static_cast<std::int64_t>(of.size()), width = shape.heads * shape.head_dim;
    const auto q = random_bf16(n * width, 1, 2.0f);
    std::vector<float> expected(q.size());
    attention_decode(cpu_bf16(), shape, pages.host(), pages.sequences(), of, rows(q, n, width), rows(expected, n, width));
    const std::int64_t nobody = 5;
    of[nobody].sequence = -1;
    std::fill_n(expected.begin() + nobody * width, width, 0.0f);

    const DeviceRowNumbers numbers(of);
    const DeviceRows device_q(q, n, width, 8), out(n, width, 8), alone(1, width);
    const DeviceMemory workspace = zeroed(paged_attention_workspace(shape, n, 300));
    for (int time = 0; time < 2; ++time) {  // the workspace is as it was
      paged_attention_decode(shape, device_q.view(), numbers.view(pages), pages.view(), out.view(), 300, workspace.data(), stream());
      CHECK_ERROR(relative_error(out.read(), expected), 2 * kRounding, "head_dim ", shape.head_dim, ", time ", time);
    }
    const auto together = out.read();
    const DeviceRowNumbers one({of[4]});
    const DeviceMemory small = zeroed(paged_attention_workspace(shape, 1, 5000));
    paged_attention_decode(shape, device_q.view().row_range(4, 1), one.view(pages), pages.view(), alone.view(), 5000, small.data(), stream());
    const auto by_itself = alone.read();
    CHECK(std::equal(by_itself.begin(), by_itself.end(), together.begin() + 4 * width));
    paged_attention_decode(shape, device_q.view().row_range(4, 1), one.view(pages, true), pages.view(), alone.view(), 5000, small.data(), stream());
    CHECK(std::ranges::equal(alone.read(), by_itself));  // reading early changes nothing
    paged_attention_decode(shape, device_q.view(), numbers.view(pages, false, true), pages.view(), out.view(), 300, workspace.data(), stream());
    CHECK_ERROR(relative_error(out.read(), expected), 2 * kRounding, "head_dim ", shape.head_dim, ", in parts as suits the rows");
    // Calls of other numbers of rows leave the workspace as they found it.
    paged_attention_decode(shape, device_q.view().row_range(4, 1), one.view(pages), pages.view(), alone.view(), 300, workspace.data(), stream());
    paged_attention_decode(shape, device_q.view(), numbers.view(pages), pages.view(), out.view(), 300, workspace.data(), stream());
    CHECK(std::ranges::equal(out.read(), together));
  }
}

TEST("a long context is divided into at most 64 parts and joined again") {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 0.25f};
  const std::vector<std::int64_t> lengths{8700};
  Pages pages(shape, lengths);
  pages.fill(lengths);
  const std::vector<KvRow> of{{0, 8699}, {0, 8191}, {0, 4095}};
  const auto q = random_bf16(3 * 32, 1, 2.0f);
  std::vector<float> expected(q.size());
  attention_decode(cpu_bf16(), shape, pages.host(), pages.sequences(), of, rows(q, 3, 32), rows(expected, 3, 32));
  const DeviceRowNumbers numbers(of);
  const DeviceRows device_q(q, 3, 32), out(3, 32);
  const DeviceMemory workspace = zeroed(paged_attention_workspace(shape, 3, 8700));
  paged_attention_decode(shape, device_q.view(), numbers.view(pages), pages.view(), out.view(), 8700, workspace.data(), stream());
  CHECK_ERROR(relative_error(out.read(), expected), 2 * kRounding, "8,700 tokens");
  paged_attention_decode(shape, device_q.view(), numbers.view(pages, false, true), pages.view(), out.view(), 8700, workspace.data(), stream());
  CHECK_ERROR(relative_error(out.read(), expected), 2 * kRounding, "8,700 tokens, in parts as suits the rows");
}

TEST("a step that finishes queries, keys and values itself gives the bits of qkv_post_paged and attention") {
  struct Case {
    AttentionShape shape;
    std::int64_t rotary;
    bool norm, bias;
  };
  const Case cases[] = {{{.heads = 7, .kv_heads = 1, .head_dim = 64, .scale = 0.3f}, 64, false, true},
                        {{.heads = 14, .kv_heads = 2, .head_dim = 128, .scale = 0.1f}, 128, true, true},
                        {{.heads = 2, .kv_heads = 1, .head_dim = 256, .scale = 0.06f, .window = 30, .softcap = 20.0f}, 256, true, false},
                        {{.heads = 4, .kv_heads = 4, .head_dim = 96, .scale = 0.1f}, 0, false, false},
                        {{.heads = 20, .kv_heads = 1, .head_dim = 32, .scale = 0.2f}, 32, false, true}};
  for (const Case& c : cases) {
    const AttentionShape& shape = c.shape;
    const QkvShape heads{shape.heads, shape.kv_heads, shape.head_dim};
    const std::vector<std::int64_t> before{150, 1, 0, 128, 47}, after{151, 2, 1, 129, 48};
    const std::vector<KvRow> of{{0, 150}, {1, 1}, {-1, 0}, {2, 0}, {3, 128}, {4, 47}};
    const std::int64_t n = 6, columns = heads.columns(), width = shape.heads * shape.head_dim, half = std::max<std::int64_t>(c.rotary / 2, 1);
    const auto raw = random_bf16(n * columns, 1, 2.0f);
    const DeviceBuffer<float> bias(random_values(columns, 2)), q_norm(random_values(shape.head_dim, 3)), k_norm(random_values(shape.head_dim, 4)), cos(random_values(200 * half, 5)),
        sin(random_values(200 * half, 6));
    QkvPost post{.eps = 1e-5f, .offset = 1.0f, .cos = cos.data(), .sin = sin.data(), .rotary_dim = c.rotary};
    if (c.bias) post.bias = bias.data();
    if (c.norm) post.q_norm = q_norm.data(), post.k_norm = k_norm.data();
    CHECK(paged_attention_finishes(shape, post));
    const DeviceRowNumbers numbers(of);
    const DeviceMemory workspace = zeroed(paged_attention_workspace(shape, n, 160));
    std::vector<std::vector<bf16>> pools;
    std::vector<std::vector<float>> results;
    for (const bool whole : {false, true}) {
      Pages pages(shape, after);
      pages.fill(before);
      const DeviceRows qkv(raw, n, columns), out(n, width, 8);
      if (whole) {
        paged_attention_step(shape, post, qkv.view(), numbers.view(pages, true), pages.view(), out.view(), 160, workspace.data(), stream());
        CHECK(std::ranges::equal(qkv.read(), DeviceRows(raw, n, columns).read()));
      } else {
        qkv_post_paged(heads, post, qkv.view(), numbers.view(pages), pages.view(), stream());
        paged_attention_decode(shape, qkv.view().columns(0, width), numbers.view(pages, true), pages.view(), out.view(), 160, workspace.data(), stream());
      }
      results.push_back(out.read());
      pools.push_back(pages.read());
    }
    CHECK(std::ranges::equal(results[0], results[1]));
    CHECK(std::ranges::equal(pools[0], pools[1], {}, &bf16::bits, &bf16::bits));
    CHECK(std::ranges::none_of(results[0], [](float x) { return std::isnan(x); }));
  }
  CHECK(!paged_attention_finishes({.heads = 2, .kv_heads = 1, .head_dim = 64, .scale = 1.0f}, {.rotary_dim = 32}));
}

TEST("attention of prompts in chunks over pages is the CPU's, and a row of no chunk is left alone") {
  for (const AttentionShape& shape : {kShapes[0], kShapes[1], kShapes[3]}) {
    const std::vector<std::int64_t> lengths{200, 75, 1};
    Pages pages(shape, lengths);
    pages.fill(lengths);
    // All of the first but what its first two tiles hold, the end of the second, all of the third; a row that is in none between them.
    const std::vector<PagedChunk> chunks{{0, 72, 0, 128}, {72, 20, 1, 55}, {93, 1, 2, 0}};
    const std::int64_t n = 94, width = shape.heads * shape.head_dim;
    std::vector<KvRow> of;
    for (const PagedChunk& c : chunks)
      for (std::int32_t i = 0; i < c.rows; ++i) of.push_back({c.sequence, c.position + i});
    of.insert(of.begin() + 92, {2, 0});
    const auto q = random_bf16(n * width, 1, 2.0f);
    std::vector<float> expected(q.size());
    attention_decode(cpu_bf16(), shape, pages.host(), pages.sequences(), of, rows(q, n, width), rows(expected, n, width));
    auto tiles = paged_tiles(chunks);
    CHECK_EQ(tiles.size(), 3u);
    tiles.push_back({0, 0, 0, 0});
    const DeviceBuffer<PagedChunk> device_tiles(tiles);
    const DeviceRows device_q(q, n, width, 8), out(n, width, 8);
    const DeviceMemory workspace(paged_prefill_workspace(shape));
    paged_attention_prefill(shape, device_q.view(), device_tiles.data(), device_tiles.size(), 200, pages.tables(), pages.stride(), pages.view(), out.view(), workspace.data(), stream());
    auto got = out.read();
    for (std::int64_t c = 92 * width; c < 93 * width; ++c) {
      CHECK(std::isnan(got[static_cast<std::size_t>(c)]));
      got[static_cast<std::size_t>(c)] = expected[static_cast<std::size_t>(c)];
    }
    CHECK_ERROR(relative_error(got, expected), 2 * kRounding, "head_dim ", shape.head_dim);
  }
  CHECK_EQ(paged_tiles(std::vector<PagedChunk>{{0, 300, 0, 10}}).size(), 3u);
}

TEST("a chunk of few queries after many tokens divides its keys into parts, and joins them") {
  for (const AttentionShape& shape : {AttentionShape{.heads = 1, .kv_heads = 1, .head_dim = 128, .scale = 0.1f}, AttentionShape{.heads = 1, .kv_heads = 1, .head_dim = 64, .scale = 0.2f, .softcap = 10.0f},
                                      AttentionShape{.heads = 1, .kv_heads = 1, .head_dim = 64, .scale = 0.2f, .window = 1000}}) {
    // The second has no keys in most parts, and begins in the middle of a page.
    const std::vector<std::int64_t> lengths{1600, 40};
    Pages pages(shape, lengths);
    pages.fill(lengths);
    const std::vector<PagedChunk> chunks{{0, 64, 0, 1536}, {64, 9, 1, 31}};
    const std::int64_t n = 73, width = shape.heads * shape.head_dim;
    std::vector<KvRow> of;
    for (const PagedChunk& c : chunks)
      for (std::int32_t i = 0; i < c.rows; ++i) of.push_back({c.sequence, c.position + i});
    const auto q = random_bf16(n * width, 1, 2.0f);
    std::vector<float> expected(q.size());
    attention_decode(cpu_bf16(), shape, pages.host(), pages.sequences(), of, rows(q, n, width), rows(expected, n, width));
    const auto tiles = paged_tiles(chunks);
    const DeviceBuffer<PagedChunk> device_tiles(tiles);
    const DeviceRows device_q(q, n, width);
    const DeviceMemory workspace(paged_prefill_workspace(shape));
    for (const auto kernels : {attention::Kernels::fitting, attention::Kernels::portable}) {
      attention::use_kernels(kernels);
      const DeviceRows out(n, width);
      paged_attention_prefill(shape, device_q.view(), device_tiles.data(), device_tiles.size(), 1600, pages.tables(), pages.stride(), pages.view(), out.view(), workspace.data(), stream());
      attention::use_kernels(attention::Kernels::fitting);
      CHECK_ERROR(relative_error(out.read(), expected), 2 * kRounding, "head_dim ", shape.head_dim, ", window ", shape.window);
    }
  }
}

TEST("queries stay, keys and values go to their slots, as qkv_post has them") {
  struct Case {
    QkvShape shape;
    std::int64_t rotary;
    bool norm, bias;
  };
  const Case cases[] = {{{3, 1, 64}, 64, false, true}, {{4, 2, 128}, 128, true, false}, {{2, 2, 96}, 48, true, true}, {{2, 1, 256}, 256, false, false}, {{5, 1, 32}, 0, false, true}};
  for (const Case& c : cases) {
    const std::vector<std::int64_t> lengths{40, 16};
    const AttentionShape shape{.heads = c.shape.heads, .kv_heads = c.shape.kv_heads, .head_dim = c.shape.head_dim, .scale = 1.0f};
    Pages pages(shape, lengths);
    pages.upload();
    const std::vector<KvRow> of{{0, 39}, {-1, 3}, {1, 0}, {1, 15}, {0, 17}};
    const std::int64_t n = 5, columns = c.shape.columns(), width = c.shape.head_dim;
    const auto raw = random_bf16(n * columns, 1), bias = random_values(columns, 2), q_norm = random_values(width, 3), k_norm = random_values(width, 4);
    const auto cos = random_values(64 * std::max<std::int64_t>(c.rotary / 2, 1), 5), sin = random_values(64 * std::max<std::int64_t>(c.rotary / 2, 1), 6);
    const DeviceBuffer<float> device_bias(bias), device_q(q_norm), device_k(k_norm), device_cos(cos), device_sin(sin);
    const DeviceRowNumbers numbers(of);
    QkvPost post;
    post.bias = c.bias ? device_bias.data() : nullptr;
    post.q_norm = c.norm ? device_q.data() : nullptr;
    post.k_norm = c.norm ? device_k.data() : nullptr;
    post.eps = 1e-5f;
    post.offset = 1.0f;
    post.cos = device_cos.data();
    post.sin = device_sin.data();
    post.rotary_dim = c.rotary;
    post.positions = numbers.position.data();
    const DeviceRows before(raw, n, columns), after(n, columns), qkv(raw, n, columns);
    DeviceBuffer<float> rstd = poisoned_floats(n * (c.shape.heads + c.shape.kv_heads));
    qkv_post_forward(c.shape, post, before.view(), after.view(), rstd.data(), stream());
    const auto expected = after.read();
    post.positions = nullptr;  // those of the rows count
    qkv_post_paged(c.shape, post, qkv.view(), numbers.view(pages), pages.view(), stream());
    const auto placed = qkv.read();
    const auto pool = pages.read();
    std::int64_t written = 0;
    for (const bf16 value : pool) written += value.bits != 0x7fc0;
    CHECK_EQ(written, 4 * 2 * c.shape.kv_heads * width);
    for (std::size_t r = 0; r < of.size(); ++r) {
      if (of[r].sequence < 0) continue;
      const float* row = expected.data() + static_cast<std::int64_t>(r) * columns;
      std::vector<float> want(row, row + columns), got(placed.begin() + static_cast<std::int64_t>(r) * columns,
                                                       placed.begin() + static_cast<std::int64_t>(r) * columns + c.shape.heads * width);
      for (int which = 0; which < 2; ++which)
        for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
          const std::int32_t page = pages.sequences()[static_cast<std::size_t>(of[r].sequence)].block_table[static_cast<std::size_t>(of[r].position / kPageTokens)];
          const std::int64_t at = pages.host().element(page, h, which, of[r].position % kPageTokens);
          for (std::int64_t d = 0; d < width; ++d) got.push_back(to_float(pool[static_cast<std::size_t>(at + d)]));
        }
      CHECK_ERROR(relative_error(got, want), 0x1p-10, "heads of ", width, ", row ", r);
    }
  }
}

}  // namespace
}  // namespace engine::cuda
