// elementwise.h: maps over activations, in fp32 and rounded once. In place is allowed wherever input and output have the same shape.
//   Random streams are those of core/rng.h and equal the CPU's. `seed` is read from device memory, so that a captured graph can be replayed.
#pragma once

#include <cstdint>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"

namespace engine::cuda {

// y += alpha · x
void add_scaled(View<const bf16> x, float alpha, View<bf16> y, cudaStream_t stream);

// y = x · mask / (1 - p): element i of the flattened [rows, cols] is kept when word i of Philox{*seed, stream_number} is at or above p · 2^32. With
// `accumulate`, y += that.
void dropout(const std::uint64_t* seed, std::uint64_t stream_number, float p, View<const bf16> x, View<bf16> y, bool accumulate, cudaStream_t stream);

// x[t, c] += magnitude[t] · (2u - 1) with u = uniform word t · cols + c of Philox{*seed, 0}; magnitude [T] = alpha / √(length of t's sequence · cols).
void add_neftune_noise(const std::uint64_t* seed, const float* magnitude, View<bf16> x, cudaStream_t stream);

// to[i] = from[rows[i]], i in [0, count): compaction of labelled rows. A negative number gives a row of zeros.
void gather_rows(View<const bf16> from, const std::int32_t* rows, View<bf16> to, cudaStream_t stream);
// to[rows[i]] = from[i]; negative numbers are skipped, and no number may repeat. Other rows of `to` stay.
void scatter_rows(View<const bf16> from, const std::int32_t* rows, View<bf16> to, cudaStream_t stream);

// to = from, between rows of any strides. Columns are a multiple of 8.
void copy_rows(View<const bf16> from, View<bf16> to, cudaStream_t stream);

// Conversions, dense or strided.
void narrow_rows(View<const float> x, View<bf16> y, cudaStream_t stream);
void widen_rows(View<const bf16> x, View<float> y, cudaStream_t stream);

// x = value everywhere.
void fill(View<bf16> x, float value, cudaStream_t stream);

}  // namespace engine::cuda
