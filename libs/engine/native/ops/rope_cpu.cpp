#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "ops/dispatch.h"
#include "ops/rope_rows.h"

namespace engine {
namespace {

void rotate(const float* cos, const float* sin, std::int64_t half, float direction, float* x) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], s = direction * sin[i];
    x[i] = a * cos[i] - b * s;
    x[i + half] = b * cos[i] + a * s;
  }
}

constexpr double kTwoPi = 2.0 * std::numbers::pi;

// theta^(-2i/dim) for every pair i.
std::vector<double> standard_frequencies(double theta, std::int64_t dim) {
  std::vector<double> inverse(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < inverse.size(); ++i) inverse[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  return inverse;
}

// NTK-aware scaling: a larger theta once the sequence is longer than the model was made for.
double dynamic_theta(const RopeParameters& p, std::int64_t length) {
  const auto original = static_cast<double>(p.original_context), dim = static_cast<double>(p.rotary_dim);
  const double used = std::max(static_cast<double>(length), original);
  return p.theta * std::pow(p.factor * used / original - (p.factor - 1.0), dim / (dim - 2.0));
}

// Llama 3.1: long wavelengths are stretched by factor, short ones kept, those between blended.
double llama3_frequency(const RopeParameters& p, double inverse) {
  const auto original = static_cast<double>(p.original_context);
  const double wavelength = kTwoPi / inverse;
  if (wavelength < original / p.high_freq_factor) return inverse;
  if (wavelength > original / p.low_freq_factor) return inverse / p.factor;
  const double smooth = (original / wavelength - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor);
  return (1.0 - smooth) * inverse / p.factor + smooth * inverse;
}

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

double yarn_attention_factor(const RopeParameters& p) {
  if (p.attention_factor > 0) return p.attention_factor;
  if (p.mscale != 0 && p.mscale_all_dim != 0) return yarn_mscale(p.factor, p.mscale) / yarn_mscale(p.factor, p.mscale_all_dim);
  return yarn_mscale(p.factor, 1.0);
}

// YaRN: pairs that turn often within the original context are kept, those that turn seldom are interpolated, a ramp between.
void yarn_frequencies(const RopeParameters& p, std::vector<double>& inverse) {
  const auto dim = static_cast<double>(p.rotary_dim);
  const auto dimension_of = [&](double rotations) {
    return dim * std::log(static_cast<double>(p.original_context) / (rotations * kTwoPi)) / (2.0 * std::log(p.theta));
  };
  double low = dimension_of(p.beta_fast), high = dimension_of(p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] = inverse[i] / p.factor * ramp + inverse[i] * (1.0 - ramp);
  }
}

void require_parameters(const RopeParameters& p) {
  require(p.rotary_dim >= 2 && p.rotary_dim % 2 == 0, "rope: rotary dimension is ", p.rotary_dim, "; use an even number");
  require(std::isfinite(p.theta) && p.theta > 1.0, "rope: theta is ", p.theta, "; use a value above 1");
  if (p.type == RopeType::standard) return;
  require(std::isfinite(p.factor) && p.factor >= 1.0, "rope: factor is ", p.factor, "; use a value of at least 1");
  if (p.type == RopeType::linear) return;
  require(p.original_context >= 1, "rope: original context is ", p.original_context, " tokens");
  if (p.type == RopeType::dynamic) require(p.rotary_dim > 2, "rope: dynamic scaling needs a rotary dimension above 2");
  if (p.type == RopeType::llama3)
    require(p.low_freq_factor > 0 && p.high_freq_factor > p.low_freq_factor, "rope: low_freq_factor ", p.low_freq_factor, " and high_freq_factor ",
            p.high_freq_factor, " are not ascending positive numbers");
  if (p.type == RopeType::yarn)
    require(p.beta_slow > 0 && p.beta_fast > p.beta_slow, "rope: beta_slow ", p.beta_slow, " and beta_fast ", p.beta_fast,
            " are not ascending positive numbers");
}

void rotate_rows(const Exec& ex, const RopeTable& table, const std::int32_t* positions, std::int64_t head_dim, float direction, Rows x) {
  require(head_dim > 0 && x.cols % head_dim == 0, "rope: ", x.cols, " columns are not heads of ", head_dim);
  require(table.rotary_dim <= head_dim, "rope: rotary dimension ", table.rotary_dim, " is above the head's ", head_dim);
  for (std::int64_t t = 0; t < x.rows; ++t)
    require(positions[t] >= 0 && positions[t] < table.count, "rope: position ", positions[t], " is outside the table of ", table.count);
  const RopeRows& rows = ENGINE_ROWS(ex.isa, rope_rows);
  const std::int64_t half = table.rotary_dim / 2;
  ex.pool.for_ranges(x.rows, 16384 / (x.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      const float* cos = table.cos.data() + positions[t] * half;
      const float* sin = table.sin.data() + positions[t] * half;
      for (std::int64_t at = 0; at < x.cols; at += head_dim) rows.rotate(cos, sin, half, direction, x.row(t) + at);
    }
  });
}

}  // namespace

const RopeRows rope_rows_scalar = {rotate};

RopeFrequencies rope_frequencies(const RopeParameters& p, std::int64_t length) {
  require_parameters(p);
  std::vector<double> inverse = standard_frequencies(p.type == RopeType::dynamic ? dynamic_theta(p, length) : p.theta, p.rotary_dim);
  RopeFrequencies result;
  if (p.type == RopeType::linear)
    for (double& f : inverse) f /= p.factor;
  if (p.type == RopeType::llama3)
    for (double& f : inverse) f = llama3_frequency(p, f);
  if (p.type == RopeType::yarn) {
    yarn_frequencies(p, inverse);
    result.attention_factor = static_cast<float>(yarn_attention_factor(p));
  }
  result.inverse.assign(inverse.begin(), inverse.end());
  return result;
}

RopeTable make_rope_table(const RopeFrequencies& frequencies, std::int64_t count) {
  require(count >= 0, "rope: a table of ", count, " positions");
  const auto half = static_cast<std::int64_t>(frequencies.inverse.size());
  RopeTable table{2 * half, count, {}, {}};
  table.cos.resize(static_cast<std::size_t>(count * half));
  table.sin.resize(static_cast<std::size_t>(count * half));
  for (std::int64_t position = 0; position < count; ++position)
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies.inverse[static_cast<std::size_t>(i)];
      const auto at = static_cast<std::size_t>(position * half + i);
      table.cos[at] = static_cast<float>(std::cos(double{angle})) * frequencies.attention_factor;
      table.sin[at] = static_cast<float>(std::sin(double{angle})) * frequencies.attention_factor;
    }
  return table;
}

void rope_apply(const Exec& ex, const RopeTable& table, const std::int32_t* positions, std::int64_t head_dim, Rows x) {
  rotate_rows(ex, table, positions, head_dim, 1.0f, x);
}

void rope_backward(const Exec& ex, const RopeTable& table, const std::int32_t* positions, std::int64_t head_dim, Rows dx) {
  rotate_rows(ex, table, positions, head_dim, -1.0f, dx);
}

}  // namespace engine
