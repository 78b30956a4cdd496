// gemm_blocked.h: a matrix product in tiles, over any GemmKernel.
//   c[m,n] (+)= alpha · Σ_k a(m,k) · b(n,k) + bias[n] + extra.alpha · Σ_k extra.a(m,k) · extra.b(n,k)
//   Every output is summed by one thread, in the order of k in passes of kernel.depth_block, or by_lanes in that of lane_order.h: its bits
//   depend on neither the number of threads nor the other rows and columns.
#pragma once

#include "core/exec.h"
#include "ops/gemm_kernel.h"
#include "ops/gemm_scalar.h"
#include "ops/matrix.h"

namespace engine {

// The right operand: fp32 in memory, or a stored weight read as b(n,k) = w[n,k] or, transposed, b(n,k) = w[k,n].
struct RightOperand {
  Operand values{};
  const Matrix* weight = nullptr;
  bool transposed = false;
};

// A second, usually shallow product for the same result: added while the result's tiles are still in cache. depth 0: none.
struct ExtraProduct {
  std::int64_t depth = 0;
  float alpha = 1.0f;
  Operand a{}, b{};
};

// by_lanes is the main product's order alone; it needs a kernel with lanes and operands whose rows lie along k.
enum class DepthOrder : std::uint8_t { straight, by_lanes };

void gemm_blocked(const Exec& ex, const GemmKernel& kernel, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Operand a, RightOperand b,
                  const float* bias, Rows c, bool accumulate, ExtraProduct extra = {}, DepthOrder order = DepthOrder::straight);

}  // namespace engine
