// nf4.h: NF4 weights into bf16.   out[r, c] = bf16(kNf4[code] · scale), one fp32 product rounded once (ops/nf4.h has the format)
//   The weight is an engine::Matrix of dtype nf4 whose pointers (codes, scales, nested map) are device memory: codes 16-byte aligned; plain or double-
//   quantized scales, the latter resolved in the kernel. Equal to the CPU's bf16 weights bit for bit.
#pragma once

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "ops/matrix.h"

namespace engine::cuda {

// out [rows, cols], any stride that is a multiple of 8: the scratch's tail columns stay as they are. cols must be even. Asynchronous on `stream`.
void nf4_dequantize(const Matrix& weight, View<bf16> out, cudaStream_t stream);

}  // namespace engine::cuda
