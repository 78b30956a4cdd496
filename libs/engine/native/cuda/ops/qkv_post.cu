// qkv_post.cu: reads and writes each value once, 4 B (8 in the backward of norms); v is left alone when it does not change. Memory bandwidth is the limit.
//   Heads that rotate whole and have no norm are turned in registers, a thread for 8 pairs. Otherwise a block takes one token and holds its row in shared
//   memory, where norms are summed and any pair of columns can be rotated.
#include "core/error.h"
#include "cuda/ops/qkv_post.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;

// The sum of a head's 8-value unit over the units of its head, by one warp for each head: partial[unit] → sums[head].
ENGINE_DEVICE void sum_heads(const float* partial, float* sums, unsigned heads, unsigned units_per_head) {
  for (unsigned head = threadIdx.x / kWarp; head < heads; head += kThreads / kWarp) {
    const float sum = warp_sum(lane_id() < units_per_head ? partial[head * units_per_head + lane_id()] : 0.0f);
    if (lane_id() == 0) sums[head] = sum;
  }
}

ENGINE_DEVICE void load_row(View<const bf16> from, const float* bias, std::int64_t row, std::int64_t columns, float* to) {
  for (std::int64_t c = 8 * threadIdx.x; c < columns; c += 8 * kThreads) {
    float values[8];
    widen8(load16(from.row(row) + c), values);
#pragma unroll
    for (int i = 0; i < 8; ++i) to[c + i] = bias != nullptr ? values[i] + bias[c + i] : values[i];
  }
}

// `columns`: those that change; shared memory holds them as fp32, then the units' and heads' sums.
__global__ void __launch_bounds__(kThreads)
    forward(QkvShape shape, QkvPost post, View<const bf16> raw, View<bf16> out, float* rstd, std::int64_t columns) {
  auto* values = static_cast<float*>(block_shared());
  const std::int64_t row = blockIdx.x;
  const auto normed = static_cast<unsigned>(shape.heads + shape.kv_heads), width = static_cast<unsigned>(shape.head_dim);
  float* unit_sums = values + columns;
  float* head_sums = unit_sums + normed * width / 8;
  load_row(raw, post.bias, row, columns, values);
  __syncthreads();
  if (post.q_norm != nullptr) {
    for (unsigned unit = threadIdx.x; unit < normed * width / 8; unit += kThreads) {
      float sum = 0;
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) sum = fmaf(values[8 * unit + i], values[8 * unit + i], sum);
      unit_sums[unit] = sum;
    }
    __syncthreads();
    sum_heads(unit_sums, head_sums, normed, width / 8);
    __syncthreads();
    for (unsigned head = threadIdx.x; head < normed; head += kThreads) {
      head_sums[head] = 1.0f / sqrtf(head_sums[head] / static_cast<float>(width) + post.eps);
      if (rstd != nullptr) rstd[row * normed + head] = head_sums[head];
    }
    __syncthreads();
    for (unsigned unit = threadIdx.x; unit < normed * width / 8; unit += kThreads) {
      const unsigned head = 8 * unit / width, inside = 8 * unit % width;
      const float* weight = (head < shape.heads ? post.q_norm : post.k_norm) + inside;
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) values[8 * unit + i] *= head_sums[head] * (weight[i] + post.offset);
    }
    __syncthreads();
  }
  const auto half = static_cast<unsigned>(post.rotary_dim / 2);
  const float* cosines = post.cos + (half > 0 ? post.positions[row] * std::int64_t{half} : 0);
  const float* sines = post.sin + (half > 0 ? post.positions[row] * std::int64_t{half} : 0);
  for (std::int64_t c = 8 * threadIdx.x; c < columns; c += 8 * kThreads) {
    float result[8];
    const auto first = static_cast<unsigned>(c), first_inside = first % width;  // the eight lie in one head
    const bool turned = first < normed * width;
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned at = first + i, inside = first_inside + i;
      if (!turned || inside >= 2 * half)
        result[i] = values[at];
      else if (inside < half)
        result[i] = values[at] * cosines[inside] - values[at + half] * sines[inside];
      else
        result[i] = values[at] * cosines[inside - half] + values[at - half] * sines[inside - half];
    }
    store16(out.row(row) + c, pack8(result));
  }
}

__global__ void __launch_bounds__(kThreads)
    backward(QkvShape shape, QkvPost post, View<const bf16> raw, const float* rstd, View<bf16> d, std::int64_t columns) {
  auto* gradients = static_cast<float*>(block_shared());
  const std::int64_t row = blockIdx.x;
  const auto normed = static_cast<unsigned>(shape.heads + shape.kv_heads), width = static_cast<unsigned>(shape.head_dim);
  float* inputs = gradients + columns;
  float* unit_sums = inputs + columns;
  float* head_sums = unit_sums + columns / 8;
  load_row(d, nullptr, row, columns, gradients);
  if (post.q_norm != nullptr) load_row(raw, post.bias, row, columns, inputs);
  __syncthreads();
  const auto half = static_cast<unsigned>(post.rotary_dim / 2);
  const float* cosines = post.cos + (half > 0 ? post.positions[row] * std::int64_t{half} : 0);
  const float* sines = post.sin + (half > 0 ? post.positions[row] * std::int64_t{half} : 0);
  // A thread owns both ends of the pairs it turns back, so this is in place.
  for (unsigned pair = threadIdx.x; pair < normed * half; pair += kThreads) {
    const unsigned inside = pair % half, at = pair / half * width + inside;
    const float low = gradients[at], high = gradients[at + half];
    gradients[at] = low * cosines[inside] + high * sines[inside];
    gradients[at + half] = high * cosines[inside] - low * sines[inside];
  }
  __syncthreads();
  if (post.q_norm != nullptr) {
    for (unsigned unit = threadIdx.x; unit < normed * width / 8; unit += kThreads) {
      float sum = 0;
      const float* weight = (8 * unit / width < shape.heads ? post.q_norm : post.k_norm) + 8 * unit % width;
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) {
        const unsigned at = 8 * unit + i;
        gradients[at] *= weight[i] + post.offset;
        sum = fmaf(gradients[at], inputs[at], sum);
      }
      unit_sums[unit] = sum;
    }
    __syncthreads();
    sum_heads(unit_sums, head_sums, normed, width / 8);
    __syncthreads();
    for (unsigned unit = threadIdx.x; unit < normed * width / 8; unit += kThreads) {
      const unsigned head = 8 * unit / width;
      const float inverse = rstd[row * normed + head], along = inverse * inverse * (head_sums[head] / static_cast<float>(width));
#pragma unroll
      for (unsigned at = 8 * unit; at < 8 * unit + 8; ++at) gradients[at] = inverse * (gradients[at] - inputs[at] * along);
    }
    __syncthreads();
  }
  for (std::int64_t c = 8 * threadIdx.x; c < columns; c += 8 * kThreads) {
    float result[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) result[i] = gradients[c + i];
    store16(d.row(row) + c, pack8(result));
  }
}

// ---- without norms

// Unit u of a row: columns 8i … of a head's lower half and the same of its upper half. kBack: the rotation the other way round, for gradients.
template <bool kBack>
__global__ void __launch_bounds__(kThreads) turn(QkvPost post, View<const bf16> raw, View<bf16> out, unsigned turned_units, unsigned units, unsigned half) {
  const std::int64_t item = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, row = item / units;
  if (row >= out.rows) return;
  const auto unit = static_cast<unsigned>(item - row * units), inside = unit % (half / 8) * 8;
  const std::int64_t low_column = std::int64_t{unit / (half / 8)} * 2 * half + inside, high_column = low_column + half;
  float low[8], high[8];
  widen8(load16(raw.row(row) + low_column), low);
  widen8(load16(raw.row(row) + high_column), high);
  if (!kBack && post.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      low[i] += post.bias[low_column + i];
      high[i] += post.bias[high_column + i];
    }
  }
  if (unit < turned_units) {
    const std::int64_t at = post.positions[row] * std::int64_t{half} + inside;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float cosine = post.cos[at + i], sine = post.sin[at + i], l = low[i], h = high[i];
      low[i] = kBack ? l * cosine + h * sine : l * cosine - h * sine;
      high[i] = kBack ? h * cosine - l * sine : h * cosine + l * sine;
    }
  }
  store16(out.row(row) + low_column, pack8(low));
  store16(out.row(row) + high_column, pack8(high));
}

bool turns_whole(const QkvShape& shape, const QkvPost& post) { return post.q_norm == nullptr && post.rotary_dim == shape.head_dim; }

template <bool kBack>
void launch_turn(const QkvShape& shape, const QkvPost& post, View<const bf16> raw, View<bf16> out, std::int64_t columns, cudaStream_t stream) {
  const std::int64_t units = columns / 16, turned = (shape.heads + shape.kv_heads) * shape.head_dim / 16;
  launch(stream, blocks(ceil_div(out.rows * units, kThreads)), kThreads, 0, turn<kBack>, post, raw, out, static_cast<unsigned>(turned), static_cast<unsigned>(units),
         static_cast<unsigned>(shape.head_dim / 2));
}

void check(const QkvShape& shape, const QkvPost& post, std::int64_t cols) {
  require(shape.head_dim % 16 == 0 && shape.head_dim > 0 && shape.head_dim <= 256, "heads of ", shape.head_dim, "; the device takes multiples of 16 up to 256");
  require(cols == shape.columns(), "q, k and v have ", cols, " columns; the shape says ", shape.columns());
  require(post.rotary_dim % 2 == 0 && post.rotary_dim <= shape.head_dim, "rotary_dim is ", post.rotary_dim, " of heads of ", shape.head_dim);
  require((post.q_norm == nullptr) == (post.k_norm == nullptr), "q and k have a norm each, or neither");
}

// Shared memory, in bytes, of `copies` of the columns that change, and the sums of units and heads.
std::int64_t shared_bytes(const QkvShape& shape, std::int64_t columns, std::int64_t copies) {
  return static_cast<std::int64_t>(sizeof(float)) * (copies * columns + columns / 8 + shape.heads + shape.kv_heads);
}

}  // namespace

void qkv_post_forward(const QkvShape& shape, const QkvPost& post, View<const bf16> raw, View<bf16> out, float* rstd, cudaStream_t stream) {
  check(shape, post, raw.cols);
  require(out.rows == raw.rows && out.cols == raw.cols, "raw is ", raw.rows, "x", raw.cols, ", out ", out.rows, "x", out.cols);
  const bool in_place = raw.data == out.data;
  const std::int64_t turned = (shape.heads + shape.kv_heads) * shape.head_dim;
  const std::int64_t columns = in_place && post.bias == nullptr ? turned : shape.columns();
  if (turns_whole(shape, post))
    launch_turn<false>(shape, post, raw, out, columns, stream);
  else
    launch(stream, blocks(raw.rows), kThreads, shared_bytes(shape, columns, 1), forward, shape, post, raw, out, rstd, columns);
}

void qkv_post_backward(const QkvShape& shape, const QkvPost& post, View<const bf16> raw, const float* rstd, View<bf16> d, cudaStream_t stream) {
  check(shape, post, d.cols);
  const std::int64_t turned = (shape.heads + shape.kv_heads) * shape.head_dim;
  if (turns_whole(shape, post))
    launch_turn<true>(shape, post, d, d, turned, stream);
  else
    launch(stream, blocks(d.rows), kThreads, shared_bytes(shape, turned, 2), backward, shape, post, raw, rstd, d, turned);
}

}  // namespace engine::cuda
