#include "core/error.h"
#include "ops/attention.h"
#include "ops/attention_scalar.h"
#include "ops/attention_tiled.h"

namespace engine {
namespace {

void require_shape(const AttentionShape& s, ConstRows q, ConstRows k, ConstRows v, std::span<const std::int64_t> offsets) {
  require(s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0 && s.heads % s.kv_heads == 0, "attention: ", s.heads, " heads of ", s.head_dim, " over ",
          s.kv_heads, " key heads");
  require(s.window >= 0 && s.softcap >= 0, "attention: window ", s.window, ", softcap ", s.softcap, "; neither may be negative");
  require(q.cols == s.heads * s.head_dim && k.cols == s.kv_heads * s.head_dim && v.cols == k.cols, "attention: q, k, v of ", q.cols, ", ", k.cols, ", ",
          v.cols, " columns do not fit ", s.heads, " heads of ", s.head_dim, " over ", s.kv_heads);
  require(q.rows == k.rows && q.rows == v.rows, "attention: q, k, v of ", q.rows, ", ", k.rows, ", ", v.rows, " tokens");
  require(!offsets.empty() && offsets.front() == 0 && offsets.back() == q.rows, "attention: sequence offsets must run from 0 to ", q.rows);
  for (std::size_t i = 1; i < offsets.size(); ++i) require(offsets[i] >= offsets[i - 1], "attention: sequence offsets must not descend");
}

void require_same(ConstRows a, ConstRows b) {
  require(a.rows == b.rows && a.cols == b.cols, "attention: shapes ", a.rows, "x", a.cols, " and ", b.rows, "x", b.cols, " differ");
}

}  // namespace

void attention_forward(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, std::span<const std::int64_t> offsets,
                       Rows out, float* lse) {
  require_shape(shape, q, k, v, offsets);
  require_same(q, out);
  if (q.rows == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel != nullptr) return attention_forward_tiled(ex, *kernel, shape, q, k, v, offsets, out, lse);
  attention_forward_scalar(ex, shape, q, k, v, offsets, out, lse);
}

void attention_backward(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v, std::span<const std::int64_t> offsets,
                        ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv) {
  require_shape(shape, q, k, v, offsets);
  require_same(q, out);
  require_same(q, dout);
  require_same(q, dq);
  require_same(k, dk);
  require_same(v, dv);
  require(lse != nullptr || q.rows == 0, "attention: the backward needs the forward's lse");
  if (q.rows == 0) return;
  const GemmKernel* kernel = gemm_kernel(ex.isa, ex.compute);
  if (kernel != nullptr) return attention_backward_tiled(ex, *kernel, shape, q, k, v, offsets, out, lse, dout, dq, dk, dv);
  attention_backward_scalar(ex, shape, q, k, v, offsets, out, lse, dout, dq, dk, dv);
}

}  // namespace engine
