// attention_tiled.h: attention in blocks of queries and keys over a GemmKernel's tiles, with the softmax carried from block to block.
//   Blocks are counted from each sequence's own start, so a sequence gives the same bits wherever it is packed.
#pragma once

#include "ops/attention.h"
#include "ops/gemm_kernel.h"

namespace engine {

void attention_forward_tiled(const Exec& ex, const GemmKernel& kernel, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                             std::span<const std::int64_t> offsets, Rows out, float* lse);
void attention_backward_tiled(const Exec& ex, const GemmKernel& kernel, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                              std::span<const std::int64_t> offsets, ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv);

}  // namespace engine
