// qkv_post_paged.cu: a warp for each head of a row. Reads 2 B and writes 2 B a value: launch and latency are all there is to it.
#include "core/error.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kPairs = 4;  // of a head of 256, for each lane

__global__ void __launch_bounds__(kThreads) place(QkvShape shape, QkvPost post, View<bf16> qkv, PagedRows rows, KvPages pages) {
  allow_next();
  wait_for_previous();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(lane_id()), width = static_cast<int>(shape.head_dim), heads = static_cast<int>(shape.heads), kv_heads = static_cast<int>(shape.kv_heads);
  const int sequence = rows.sequence[row], position = rows.position[row];
  if (head >= heads + 2 * kv_heads || sequence < 0) return;
  const bool is_query = head < heads, is_value = head >= heads + kv_heads;
  const std::int64_t first = std::int64_t{head} * width;
  bf16* from = qkv.row(row) + first;
  bf16* to = from;
  if (!is_query) {
    const std::int64_t page = rows.tables[sequence * rows.table_stride + position / kPageTokens];
    const int kv_head = (head - heads) % kv_heads;
    to = pages.data + page * pages.page_elements() + ((2 * kv_head + (is_value ? 1 : 0)) * kPageTokens + position % kPageTokens) * width;
  }
  // Lane l has elements i and i + apart for i = l, l + 32 …: the ends of a turned pair where there is one.
  const int half = is_value ? 0 : static_cast<int>(post.rotary_dim / 2), apart = half > 0 ? half : width / 2;
  float low[kPairs], high[kPairs], squares = 0;
  const auto load = [&](int i) {
    const float u = widen(from[i]) + (post.bias != nullptr ? post.bias[first + i] : 0.0f);
    squares = fmaf(u, u, squares);
    return u;
  };
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarp;
    low[j] = high[j] = 0;
    if (i >= apart) continue;
    low[j] = load(i);
    high[j] = load(i + apart);
  }
  float rest[2 * kPairs];  // what lies beyond a partial rotation
#pragma unroll
  for (int j = 0; j < 2 * kPairs; ++j) {
    const int i = 2 * apart + lane + j * kWarp;
    rest[j] = i < width ? load(i) : 0.0f;
  }
  const float* norm = is_value ? nullptr : is_query ? post.q_norm : post.k_norm;
  if (norm != nullptr) {
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + post.eps);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane + j * kWarp;
      if (i >= apart) continue;
      low[j] *= inverse * (norm[i] + post.offset);
      high[j] *= inverse * (norm[i + apart] + post.offset);
    }
#pragma unroll
    for (int j = 0; j < 2 * kPairs; ++j) {
      const int i = 2 * apart + lane + j * kWarp;
      if (i < width) rest[j] *= inverse * (norm[i] + post.offset);
    }
  }
  const std::int64_t angles = std::int64_t{position} * half;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarp;
    if (i >= apart) continue;
    float a = low[j], b = high[j];
    if (half > 0) {
      const float c = post.cos[angles + i], s = post.sin[angles + i];
      a = low[j] * c - high[j] * s;
      b = high[j] * c + low[j] * s;
    }
    to[i] = narrow(a);
    to[i + apart] = narrow(b);
  }
#pragma unroll
  for (int j = 0; j < 2 * kPairs; ++j) {
    const int i = 2 * apart + lane + j * kWarp;
    if (i < width) to[i] = narrow(rest[j]);
  }
}

}  // namespace

void qkv_post_paged(const QkvShape& shape, const QkvPost& post, View<bf16> qkv, const PagedRows& rows, const KvPages& pages, cudaStream_t stream) {
  require(shape.head_dim % 16 == 0 && shape.head_dim > 0 && shape.head_dim <= 256, "heads of ", shape.head_dim, "; the device takes multiples of 16 up to 256");
  require(qkv.cols == shape.columns(), "q, k and v have ", qkv.cols, " columns; the shape says ", shape.columns());
  require(post.rotary_dim % 2 == 0 && post.rotary_dim <= shape.head_dim, "rotary_dim is ", post.rotary_dim, " of heads of ", shape.head_dim);
  require((post.q_norm == nullptr) == (post.k_norm == nullptr), "q and k have a norm each, or neither");
  require(pages.kv_heads == shape.kv_heads && pages.head_dim == shape.head_dim, "the pages are of ", pages.kv_heads, " heads of ", pages.head_dim, ", not ",
          shape.kv_heads, " of ", shape.head_dim);
  launch_chained(stream, dim3(blocks(qkv.rows), blocks(ceil_div(shape.heads + 2 * shape.kv_heads, kWarps))), kThreads, 0, place, shape, post, qkv, rows, pages);
}

}  // namespace engine::cuda
