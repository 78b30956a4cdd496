// dora_rows.h: magnitudes of generation's adapters (ops/dora.h): every row may have another one.
//   y[t, n] = c[n] · (W·x + s·B·A·x)[t, n] + bias[n], c of row t's adapter and the output's projection; rows and projections without c are as they are.
//   These run behind a product that took rows of all kinds alike: those without c keep the bits that it gave them.
//   Who has which is read from device memory when a kernel runs, as in lora_rows.h. Rows begin at 16-byte aligned addresses, outputs come in eights.
#pragma once

#include <cstdint>

#include "cuda/ops/lora_rows.h"
#include "cuda/ops/nf4_pack.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/glu.h"

namespace engine::cuda {

// The factors of one product's rows. Everything in device memory but the number.
struct RowFactors {
  const float* const* factors = nullptr;  // [adapters, parts]: c [outputs of the part], 16-byte aligned; null: none
  const std::int32_t* adapter = nullptr;  // [T], its row of `factors`; negative: none
  std::int64_t parts = 1;                 // at most 3
};

// y [T, Σ outputs] ← c · (y − bias) + bias, in fp32 and rounded once: what a product with its bias would be, had c been there before the bias. Part p's
// columns are [first_output[p], first_output[p + 1]). bias [Σ outputs] may be null. With `aside` (data not null), rows that have c get that, rounded, added.
void dora_rows_scale(const RowFactors& factors, const LoraColumns& columns, const bf16* bias, View<const bf16> aside, View<bf16> y, cudaStream_t stream);

// Before a product of one part that adds to y: of rows that have c, aside ← y and y ← 0. Other rows of aside are not written.
void dora_rows_set_aside(const RowFactors& factors, View<bf16> y, View<bf16> aside, cudaStream_t stream);

// What a product with nf4_tiles of [gate | up] gave (nf4_pack.h), the adapters' part and the bias still to come.
struct GateUpTiles {
  View<const bf16> tiles;      // [T, 2F]
  float unit[2] = {1, 1};      // of gate's and up's values
  const bf16* bias = nullptr;  // [gate | up], or null
};
enum class GatedRows : std::uint8_t { all, scaled };  // scaled: those that have c for gate or up
// y [T, F] = act(gate) · up of those rows, gate and up = c · (tiles · unit + low·Bᵀ) + bias, rounded to bf16 before. `low` as lora_rows_shrink made it for
// {gate, up}; adapters without entries: none is added.
void dora_rows_gated(Activation act, const GateUpTiles& from, View<const bf16> low, const RowAdapters& adapters, const RowFactors& factors, GatedRows which, View<bf16> y,
                     cudaStream_t stream);

}  // namespace engine::cuda
