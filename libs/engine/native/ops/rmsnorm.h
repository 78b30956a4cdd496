// rmsnorm.h: y = x · rstd · (w + offset),  rstd = 1 / sqrt(mean(x²) + eps)
//   Norms run over consecutive groups of `width` columns: width = cols is the usual norm of a token; width = head_dim on
//   [T, heads · head_dim] is the per-head norm of q and k. width divides cols; w fp32 [width], shared by all groups.
//   offset is 0 (Llama, Qwen) or 1 (Gemma stores w - 1). The mean is summed in fp64 by the definition; vector paths sum fp32 lanes.
#pragma once

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

struct RmsNorm {
  const float* weight;  // [width]
  std::int64_t width;
  float eps;
  float offset = 0;
};

// y may be x itself when no backward follows. rstd [rows · cols / width] is written when not null.
void rmsnorm_forward(const Exec& ex, const RmsNorm& norm, ConstRows x, Rows y, float* rstd);

// dx (+)= rstd · (dy·(w + offset) - x·rstd² · mean(dy·(w + offset)·x))      x and rstd as of the forward. dx may be dy.
void rmsnorm_backward(const Exec& ex, const RmsNorm& norm, ConstRows x, const float* rstd, ConstRows dy, Rows dx, bool accumulate = false);

// dweight[width] += Σ over rows and groups of dy · x · rstd
void rmsnorm_backward_weight(const Exec& ex, const RmsNorm& norm, ConstRows x, const float* rstd, ConstRows dy, float* dweight);

}  // namespace engine
