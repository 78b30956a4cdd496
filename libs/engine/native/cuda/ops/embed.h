// embed.h: rows of the token table.   out[t] = bf16(scale · table[ids[t]])
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

// table [V, H] in device memory or in pinned host memory (then rows cross the bus when they are used); ids [T] on the device, each below V (the
// caller checks: an id outside is a broken invariant and gives NaN rows). out [T, H].
void embed_forward(View<const bf16> table, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream);
// The same of a table in fp32, rounded once; its rows 16-byte aligned.
void embed_forward(View<const float> table, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream);

// The same where a row's adapter may have a table of its own, of the same shape, which then takes the other's place.
struct RowTables {
  const bf16* const* tables = nullptr;    // [adapters] on the device; null: it has none
  const std::int32_t* adapter = nullptr;  // [T], its place in `tables`; negative: none
};
void embed_rows_forward(View<const bf16> table, const RowTables& own, const std::uint32_t* ids, float scale, View<bf16> out, cudaStream_t stream);

// dtable[ids[t]] += scale · dout[t], dtable fp32 [V, H]. Repeated ids are added in the order of t. No atomics.
void embed_backward(const std::uint32_t* ids, View<const bf16> dout, float scale, View<float> dtable, cudaStream_t stream);

}  // namespace engine::cuda
