// embed.cu: one block a token. Forward: 4 B a value, from device memory or across the bus. Backward: the block of an id's first occurrence adds them all.
#include "core/error.h"
#include "cuda/ops/embed.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;

ENGINE_DEVICE void load8_once(const bf16* from, float (&values)[8]) { widen8(load16_once(from), values); }
ENGINE_DEVICE void load8_once(const float* from, float (&values)[8]) {
  load_floats4(from, values);
  load_floats4(from + 4, values + 4);
}

template <class T>
ENGINE_DEVICE void embed_row(View<const T> table, std::int64_t id, float scale, std::int64_t row, View<bf16> out) {
  for (std::int64_t c = 8 * threadIdx.x; c < out.cols; c += 8 * kThreads) {
    float values[8];
    if (id < table.rows)
      load8_once(table.row(id) + c, values);
    else
      for (float& value : values) value = quiet_nan();
#pragma unroll
    for (float& value : values) value *= scale;
    store16(out.row(row) + c, pack8(values));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward(View<const T> table, const std::uint32_t* ids, float scale, View<bf16> out) {
  embed_row(table, ids[blockIdx.x], scale, blockIdx.x, out);
}

__global__ void __launch_bounds__(kThreads) forward_rows(View<const bf16> table, RowTables own, const std::uint32_t* ids, float scale, View<bf16> out) {
  const std::int32_t adapter = own.adapter[blockIdx.x];
  if (const bf16* other = adapter < 0 ? nullptr : own.tables[adapter]; other != nullptr) table.data = other;
  embed_row(table, ids[blockIdx.x], scale, blockIdx.x, out);
}

__global__ void __launch_bounds__(kThreads) backward(const std::uint32_t* ids, View<const bf16> dout, float scale, View<float> dtable) {
  SHARED_ARRAY(int, seen_before, 1);
  const std::int64_t row = blockIdx.x;
  const std::uint32_t id = ids[row];
  if (threadIdx.x == 0) *seen_before = 0;
  __syncthreads();
  for (std::int64_t t = threadIdx.x; t < row; t += kThreads)
    if (ids[t] == id) *seen_before = 1;
  __syncthreads();
  if (*seen_before != 0) return;
  for (std::int64_t t = row; t < dout.rows; ++t) {
    if (ids[t] != id) continue;
    for (std::int64_t c = threadIdx.x; c < dout.cols; c += kThreads) dtable.row(id)[c] += scale * widen(dout.row(t)[c]);
  }
}

void check_columns(std::int64_t table, std::int64_t out) {
  require(table == out && out % 8 == 0, "rows of ", table, " values into rows of ", out, "; the device takes equal multiples of 8");
}

template <class T>
void launch_forward(View<const T> table, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream) {
  check_columns(table.cols, out.cols);
  launch(stream, blocks(out.rows), kThreads, 0, forward<T>, table, ids, scale, out);
}

}  // namespace

void embed_forward(View<const bf16> table, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream) {
  launch_forward(table, ids, scale, out, stream);
}

void embed_forward(View<const float> table, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream) {
  launch_forward(table, ids, scale, out, stream);
}

void embed_rows_forward(View<const bf16> table, const RowTables& own, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream) {
  check_columns(table.cols, out.cols);
  launch(stream, blocks(out.rows), kThreads, 0, forward_rows, table, own, ids, scale, out);
}

void embed_backward(const std::uint32_t* ids, View<const bf16> dout, float scale, View<float> dtable, cudaStream_t stream) {
  require(dtable.cols == dout.cols, "rows of ", dout.cols, " values into rows of ", dtable.cols);
  launch(stream, blocks(dout.rows), kThreads, 0, backward, ids, dout, scale, dtable);
}

}  // namespace engine::cuda
