// lora_rows.h: adapters of generation: every row may have another one, of another rank.
//   low[t, p·ranks + j] = scale · Σ_k x[t, k] · A[j, k]        y[t, n] += Σ_j low[t, p·ranks + j] · B[n, j]
//   with A, B, scale of entry (adapter[t], p); p counts the projections stacked in one product (q, k, v; gate, up; or one alone).
//   Who has which is read from device memory when a kernel runs, so a captured graph stays true when adapters come and go.
//   Sums are fp32; low is rounded to bf16. A row's result does not depend on the other rows.
#pragma once

#include <cstdint>

#include "cuda/ops/rmsnorm.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/glu.h"

namespace engine::cuda {

// One projection's adapter. rank is a multiple of 8 (rows of A and columns of B beyond the adapter's own are zeros); 0: this projection has none.
struct LoraEntry {
  const bf16* a;  // [rank, K], 16-byte aligned
  const bf16* b;  // [outputs, rank], 16-byte aligned
  std::int32_t rank;
  float scale;
};

// The adapters of one product's rows. Everything in device memory but the numbers.
struct RowAdapters {
  const LoraEntry* entries = nullptr;       // [adapters, parts]; null: no row has an adapter
  const std::int32_t* adapter = nullptr;    // [T], its row of `entries`; negative: none
  std::int64_t parts = 1;                   // at most 3
  std::int64_t ranks = 0;                   // columns of low for one part: no rank is larger; a multiple of 8, at most 256
};

// low [T, parts · ranks] of x [T, K]. With norm.weight not null, of the normalized rows (rmsnorm.h), each rounded to bf16. Columns beyond a row's rank are
// not written, nor read by what takes low. Who has which, entries and A are read while the kernel before still runs: no kernel writes them.
void lora_rows_shrink(View<const bf16> x, const RmsNorm& norm, const RowAdapters& adapters, View<bf16> low, cudaStream_t stream);

// y [T, Σ outputs] += low·Bᵀ, rounded once; part p's columns are [first_output[p], first_output[p + 1]). For products that do not add it themselves.
struct LoraColumns {
  std::int64_t first_output[4];
};
void lora_rows_expand(View<const bf16> low, const RowAdapters& adapters, const LoraColumns& columns, View<bf16> y, cudaStream_t stream);
// The same to gate_up [T, 2F] = [gate | up], and y [T, F] = act(gate) · up of the rounded sums, of rows without an adapter too. gate_up itself stays.
void lora_rows_expand_gated(Activation act, View<const bf16> low, const RowAdapters& adapters, View<bf16> gate_up, View<bf16> y, cudaStream_t stream);

}  // namespace engine::cuda
