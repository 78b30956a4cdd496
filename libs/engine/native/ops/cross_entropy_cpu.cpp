#include "ops/cross_entropy.h"

#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "ops/cross_entropy_rows.h"
#include "ops/dispatch.h"

namespace engine {
namespace {

float cap(float x, float softcap) { return softcap > 0 ? softcap * std::tanh(x / softcap) : x; }

// d cap(x) / dx, from the capped value
float cap_slope(float capped, float softcap) {
  if (!(softcap > 0)) return 1.0f;
  const float t = capped / softcap;
  return 1.0f - t * t;
}

float log_sum_exp(const float* logits, std::int64_t n, float softcap) {
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < n; ++i) largest = std::fmax(largest, cap(logits[i], softcap));
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(double{cap(logits[i], softcap)} - largest);
  return static_cast<float>(largest + std::log(sum));
}

void gradient_row(float* logits, std::int64_t n, float lse, float weight, float softcap) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = cap(logits[i], softcap);
    logits[i] = weight * std::exp(z - lse) * cap_slope(z, softcap);
  }
}

void softcap_row(float* logits, std::int64_t n, float softcap) {
  for (std::int64_t i = 0; i < n; ++i) logits[i] = cap(logits[i], softcap);
}

}  // namespace

const CrossEntropyRows cross_entropy_rows_scalar = {log_sum_exp, gradient_row, softcap_row};

double cross_entropy(const Exec& ex, Rows logits, std::span<const std::uint32_t> targets, std::span<const float> weights, float softcap,
                     LogitGradient gradient, float* losses) {
  const auto count = static_cast<std::int64_t>(targets.size());
  require(logits.rows == count && static_cast<std::int64_t>(weights.size()) == count, "cross entropy: ", logits.rows, " rows, ", count, " targets, ",
          weights.size(), " weights");
  for (const std::uint32_t target : targets) require(target < static_cast<std::uint64_t>(logits.cols), "a target is beyond the vocabulary of ", logits.cols);
  const CrossEntropyRows& rows = ENGINE_ROWS(ex.isa, cross_entropy_rows);
  std::vector<float> row_losses(targets.size());
  ex.pool.for_ranges(count, 4096 / (logits.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      const auto i = static_cast<std::size_t>(r);
      float* row = logits.row(r);
      const std::uint32_t target = targets[i];
      const float lse = rows.log_sum_exp(row, logits.cols, softcap);
      const float z = cap(row[target], softcap);
      row_losses[i] = lse - z;
      if (gradient == LogitGradient::none) continue;
      if (weights[i] == 0.0f) {
        for (std::int64_t c = 0; c < logits.cols; ++c) row[c] = 0.0f;
        continue;
      }
      rows.gradient(row, logits.cols, lse, weights[i], softcap);
      // weight · (p - 1) · cap' for the target, by expm1 so that a confident row does not lose it to cancellation
      row[target] = weights[i] * std::expm1(z - lse) * cap_slope(z, softcap);
    }
  });
  double total = 0;
  for (std::size_t i = 0; i < row_losses.size(); ++i) {
    if (weights[i] != 0.0f) total += double{weights[i]} * row_losses[i];
    if (losses != nullptr) losses[i] = row_losses[i];
  }
  return total;
}

void softcap_logits(const Exec& ex, Rows logits, float softcap) {
  require(softcap > 0, "softcap is ", softcap, "; use a value above 0");
  const CrossEntropyRows& rows = ENGINE_ROWS(ex.isa, cross_entropy_rows);
  ex.pool.for_ranges(logits.rows, 4096 / (logits.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) rows.softcap(logits.row(r), logits.cols, softcap);
  });
}

}  // namespace engine
