// attention_arguments.h: what the attention kernels are given, and which kernels a call takes.
//   head_dim 64 and 128 have kernels for warpgroups (compute capability 9.0); everything else, and other devices, take those of single warps.
#pragma once

#include "cuda/ops/attention.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/runtime/cuda.h"

namespace engine::cuda::attention {

// How scores are made of products of queries and keys.
struct Scores {
  int window;  // 0: no limit
  float scale, softcap;
};

struct ForwardArguments {
  const bf16 *q, *k, *v;
  bf16* out;
  float* lse;
  std::int64_t q_stride, k_stride, v_stride, out_stride, tokens;
  const AttentionTile* tiles;
  int heads, group, window;
  float scale, softcap;
};

struct PagedForwardArguments {
  const bf16* q;
  bf16* out;
  std::int64_t q_stride, out_stride;
  const PagedChunk* tiles;
  const std::int32_t* tables;
  std::int64_t table_stride;
  const bf16* pages;
  int kv_heads, group;
  Scores scores;
};

struct BackwardArguments {
  const bf16 *q, *k, *v, *out, *dout;
  bf16 *dq, *dk, *dv;
  const float* lse;          // [heads, tokens]
  float2* stats;             // [heads, tokens]: lse in units of log 2, Σ out·dout
  float *part_dk, *part_dv;  // [heads, tokens, head_dim] when heads are split, else null
  std::int64_t q_stride, k_stride, v_stride, out_stride, dout_stride, dq_stride, dk_stride, dv_stride, tokens;
  const AttentionTile* tiles;
  int tile_count, heads, group, window;
  float scale, softcap;
};

// `fitting` takes the fastest kernels that the device can run; `portable` those that every device can, for tests and measurements.
enum class Kernels : std::uint8_t { fitting, portable };
void use_kernels(Kernels kernels);
bool takes_warpgroups(std::int64_t head_dim);

void forward_with_warpgroups(std::int64_t head_dim, const ForwardArguments& in, std::int64_t tiles, cudaStream_t stream);
// Of `keys` at most for each query; no more than fit into a block's list of pages. `workspace` of prefill_workspace_with_warpgroups bytes.
inline constexpr std::int64_t kMostGroupPages = 16384;
std::int64_t prefill_workspace_with_warpgroups(std::int64_t head_dim);
void prefill_with_warpgroups(std::int64_t head_dim, const PagedForwardArguments& in, std::int64_t tiles, std::int64_t keys, void* workspace, cudaStream_t stream);
// dq, and dk and dv or their parts; `stats` are there.
void backward_with_warpgroups(std::int64_t head_dim, const BackwardArguments& in, cudaStream_t stream);

}  // namespace engine::cuda::attention
