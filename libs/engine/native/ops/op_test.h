// op_test.h: what the tests of operations share: data, instruction sets to try, and ways to compare.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "core/bf16.h"
#include "core/exec.h"
#include "core/rng.h"
#include "core/test.h"
#include "ops/decode.h"
#include "ops/matrix.h"
#include "ops/nf4.h"

namespace engine::test {

// Sizes that end inside, at and beyond vectors, blocks and panels.
inline constexpr std::int64_t kOddSizes[] = {0, 1, 63, 65, 4097};

// Every instruction set this machine can run, scalar first.
inline std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i <= static_cast<int>(detected_isa()); ++i) isas.push_back(static_cast<Isa>(i));
  return isas;
}

inline ThreadPool& pool() {
  static ThreadPool shared(3);
  return shared;
}

inline Exec exec(Isa isa, Compute compute = Compute::f32) { return Exec{pool(), isa, compute}; }

// Values spread like a normal distribution of the given width; another `stream` gives others.
inline std::vector<float> random_values(std::int64_t n, std::uint64_t stream, float width = 1.0f) {
  const Philox words{20261122, stream};
  std::vector<float> values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float u = words.uniform(2 * i), v = words.uniform(2 * i + 1);
    values[i] = width * std::sqrt(-2.0f * std::log(1.0f - u)) * std::cos(6.2831853f * v);
  }
  return values;
}

// A buffer whose every value must be overwritten: left alone, it is NaN.
inline std::vector<float> poisoned(std::int64_t n) {
  return std::vector<float>(static_cast<std::size_t>(n), std::numeric_limits<float>::quiet_NaN());
}

// ‖a − b‖ / ‖b‖; 0 for two empty or equal vectors; NaN anywhere gives NaN, which no tolerance accepts.
inline double relative_error(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::quiet_NaN();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = double{a[i]} - b[i];
    difference += d * d;
    norm += double{b[i]} * b[i];
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / (norm > 0 ? norm : 1.0));
}

// Compares an analytic gradient of L(x) with central differences at up to `samples` places.
// loss() reads the values it is given access to; returns the norm of the error over the norm of the gradient.
inline double finite_difference_error(std::span<float> x, std::span<const float> gradient, const std::function<double()>& loss, float h = 1e-2f,
                                      std::int64_t samples = 60) {
  double difference = 0, norm = 0;
  const auto n = static_cast<std::int64_t>(x.size());
  const std::int64_t step = n > samples ? n / samples : 1;
  for (std::int64_t at = 0; at < n; at += step) {
    const auto i = static_cast<std::size_t>(at);
    const float before = x[i];
    const float up = before + h, down = before - h;
    x[i] = up;
    const double above = loss();
    x[i] = down;
    const double below = loss();
    x[i] = before;
    const double numeric = (above - below) / (double{up} - double{down});
    difference += (numeric - gradient[i]) * (numeric - gradient[i]);
    norm += numeric * numeric;
  }
  return std::sqrt(difference / (norm > 0 ? norm : 1.0));
}

inline double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

// A weight of any type, with the memory it borrows.
struct OwnedWeight {
  std::vector<std::uint8_t> bytes, codes;
  std::vector<float> absmax, nested_absmax;
  Matrix view;
};

enum class WeightKind : std::uint8_t { f32, bf16, f16, nf4, nf4_double };
inline constexpr WeightKind kWeightKinds[] = {WeightKind::f32, WeightKind::bf16, WeightKind::f16, WeightKind::nf4, WeightKind::nf4_double};

inline OwnedWeight make_weight(WeightKind kind, std::int64_t rows, std::int64_t cols, std::uint64_t stream, float width = 0.5f) {
  const std::vector<float> values = random_values(rows * cols, stream, width);
  const std::int64_t n = rows * cols;
  OwnedWeight w;
  w.view.rows = rows;
  w.view.cols = cols;
  if (kind == WeightKind::nf4 || kind == WeightKind::nf4_double) {
    w.view.dtype = Dtype::nf4;
    w.bytes.resize(static_cast<std::size_t>(nf4_bytes(n)) + 1);
    w.absmax.resize(static_cast<std::size_t>(nf4_blocks(n)) + 1);
    quantize_nf4(exec(Isa::scalar), values.data(), n, w.bytes.data(), w.absmax.data());
    w.view.nf4.absmax = w.absmax.data();
    if (kind == WeightKind::nf4_double) {
      DoubleQuantized d = double_quantize(w.absmax.data(), nf4_blocks(n));
      w.codes = std::move(d.codes);
      w.codes.push_back(0);
      w.nested_absmax = std::move(d.nested_absmax);
      w.nested_absmax.push_back(0);
      w.view.nf4 = {nullptr, w.codes.data(), kDynamicSigned.data(), w.nested_absmax.data(), d.offset};
    }
  } else {
    w.view.dtype = kind == WeightKind::f32 ? Dtype::f32 : kind == WeightKind::bf16 ? Dtype::bf16 : Dtype::f16;
    w.bytes.resize(static_cast<std::size_t>(n * dtype_size(w.view.dtype)) + 1);
    from_f32(w.view.dtype, values.data(), n, w.bytes.data());
  }
  w.view.data = w.bytes.data();
  return w;
}

inline std::string describe(Isa isa, Compute compute) { return std::string(isa_name(isa)) + (compute == Compute::bf16 ? " bf16" : " f32"); }

}  // namespace engine::test

// A relative error at or below a tolerance, with a note about the case.
#define CHECK_ERROR(error, tolerance, ...)                                                                                                   \
  do {                                                                                                                                       \
    const double engine_error = (error);                                                                                                     \
    if (!(engine_error <= (tolerance)))                                                                                                      \
      ::engine::test::report_failure(__FILE__, __LINE__, ::engine::text(#error " is ", engine_error, ", above ", tolerance, ": ", __VA_ARGS__)); \
  } while (false)
