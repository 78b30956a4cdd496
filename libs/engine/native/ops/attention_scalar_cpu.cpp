#include "ops/attention_scalar.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/bf16.h"

namespace engine {
namespace {

float operand(Compute compute, float x) { return compute == Compute::bf16 ? round_to_bf16(x) : x; }

// a·b of two heads' vectors, operands rounded as `compute` says.
float dot(Compute compute, const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double{operand(compute, a[i])} * operand(compute, b[i]);
  return static_cast<float>(sum);
}

float capped(const AttentionShape& shape, float s) { return shape.softcap > 0 ? shape.softcap * std::tanh(s / shape.softcap) : s; }

// First key that query i of a sequence may see.
std::int64_t first_key(const AttentionShape& shape, std::int64_t i) { return shape.window > 0 ? std::max<std::int64_t>(0, i - shape.window + 1) : 0; }

}  // namespace

void attention_forward_scalar(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                              std::span<const std::int64_t> offsets, Rows out, float* lse) {
  const std::int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads, tokens = q.rows;
  for (std::size_t sequence = 0; sequence + 1 < offsets.size(); ++sequence) {
    const std::int64_t begin = offsets[sequence], length = offsets[sequence + 1] - begin;
    ex.pool.for_ranges(length * shape.heads, 4, [&](std::int64_t first, std::int64_t last) {
      std::vector<float> s(static_cast<std::size_t>(length));
      for (std::int64_t work = first; work < last; ++work) {
        const std::int64_t i = work / shape.heads, h = work % shape.heads, kv = h / group;
        const std::int64_t start = first_key(shape, i);
        float largest = -std::numeric_limits<float>::infinity();
        for (std::int64_t j = start; j <= i; ++j) {
          const float score = capped(shape, shape.scale * dot(ex.compute, q.row(begin + i) + h * d, k.row(begin + j) + kv * d, d));
          s[static_cast<std::size_t>(j)] = score;
          largest = std::max(largest, score);
        }
        std::vector<double> sum(static_cast<std::size_t>(d));
        double total = 0;
        for (std::int64_t j = start; j <= i; ++j) {
          const float p = std::exp(s[static_cast<std::size_t>(j)] - largest);
          total += p;
          for (std::int64_t c = 0; c < d; ++c)
            sum[static_cast<std::size_t>(c)] += double{operand(ex.compute, p)} * operand(ex.compute, v.row(begin + j)[kv * d + c]);
        }
        for (std::int64_t c = 0; c < d; ++c) out.row(begin + i)[h * d + c] = static_cast<float>(sum[static_cast<std::size_t>(c)] / total);
        if (lse != nullptr) lse[h * tokens + begin + i] = static_cast<float>(largest + std::log(total));
      }
    });
  }
}

void attention_backward_scalar(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                               std::span<const std::int64_t> offsets, ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv) {
  const std::int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads, tokens = q.rows;
  const auto sequences = static_cast<std::int64_t>(offsets.size()) - 1;
  // One owner for each key head of each sequence; the query heads it serves are its own too.
  ex.pool.parallel(sequences * shape.kv_heads, [&](std::int64_t part, int) {
    const auto sequence = static_cast<std::size_t>(part / shape.kv_heads);
    const std::int64_t kv = part % shape.kv_heads, begin = offsets[sequence], end = offsets[sequence + 1];
    for (std::int64_t t = begin; t < end; ++t) {
      std::fill_n(dq.row(t) + kv * group * d, group * d, 0.0f);
      std::fill_n(dk.row(t) + kv * d, d, 0.0f);
      std::fill_n(dv.row(t) + kv * d, d, 0.0f);
    }
    for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h)
      for (std::int64_t i = begin; i < end; ++i) {
        const float* qi = q.row(i) + h * d;
        const float* doi = dout.row(i) + h * d;
        const float delta = dot(Compute::f32, doi, out.row(i) + h * d, d);  // Σ p·dp, without p
        for (std::int64_t j = begin + first_key(shape, i - begin); j <= i; ++j) {
          const float* kj = k.row(j) + kv * d;
          const float* vj = v.row(j) + kv * d;
          const float score = capped(shape, shape.scale * dot(ex.compute, qi, kj, d));
          const float p = std::exp(score - lse[h * tokens + i]);
          const float dp = dot(ex.compute, doi, vj, d);
          const float t = shape.softcap > 0 ? score / shape.softcap : 0.0f;
          const float ds = operand(ex.compute, p * (dp - delta) * (1.0f - t * t) * shape.scale);
          const float pv = operand(ex.compute, p);
          for (std::int64_t c = 0; c < d; ++c) {
            dv.row(j)[kv * d + c] += pv * operand(ex.compute, doi[c]);
            dk.row(j)[kv * d + c] += ds * operand(ex.compute, qi[c]);
            dq.row(i)[h * d + c] += ds * operand(ex.compute, kj[c]);
          }
        }
      }
  });
}

}  // namespace engine
