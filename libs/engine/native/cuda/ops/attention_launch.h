// attention_launch.h: what starting the attention kernels shares: the checks of a call and the head sizes there are kernels for.
#pragma once

#include <type_traits>

#include "core/error.h"
#include "cuda/ops/attention.h"
#include "cuda/ops/paged_attention.h"

namespace engine::cuda::attention {

// Throws invalid when the matrices do not have the shape's columns, unsupported for a head size without a kernel.
void check_shapes(const AttentionShape& shape, View<const bf16> q, View<const bf16> k, View<const bf16> v);

// The same for queries and their result over a pool of pages.
void check_paged(const AttentionShape& shape, View<const bf16> q, const KvPages& pages, View<const bf16> out);

template <int D>
using HeadDim = std::integral_constant<int, D>;

// Calls f with the head size as a type.
template <class F>
void for_head_dim(std::int64_t head_dim, F&& f) {
  switch (head_dim) {
    case 16: return f(HeadDim<16>{});
    case 32: return f(HeadDim<32>{});
    case 64: return f(HeadDim<64>{});
    case 96: return f(HeadDim<96>{});
    case 128: return f(HeadDim<128>{});
    case 256: return f(HeadDim<256>{});
    default: throw Error(Code::unsupported, "attention: there is no CUDA kernel for head_dim " + std::to_string(head_dim));
  }
}

}  // namespace engine::cuda::attention
