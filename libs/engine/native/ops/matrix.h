// matrix.h: the views operations take. All borrow; none frees. Sizes and strides are in elements.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace engine {

// fp32 activations: element (r, c) at data[r * stride + c]. A column slice of a wider buffer is a Rows with the wider stride.
struct Rows {
  float* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;

  Rows() = default;
  Rows(float* d, std::int64_t r, std::int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  Rows(float* d, std::int64_t r, std::int64_t c, std::int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  float* row(std::int64_t r) const noexcept { return data + r * stride; }
  Rows slice(std::int64_t first_col, std::int64_t count) const noexcept { return {data + first_col, rows, count, stride}; }
};

struct ConstRows {
  const float* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;

  ConstRows() = default;
  ConstRows(const float* d, std::int64_t r, std::int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  ConstRows(const float* d, std::int64_t r, std::int64_t c, std::int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  ConstRows(Rows m) : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}  // NOLINT: a view of a view, meant to convert
  const float* row(std::int64_t r) const noexcept { return data + r * stride; }
  ConstRows slice(std::int64_t first_col, std::int64_t count) const noexcept { return {data + first_col, rows, count, stride}; }
};

// The scales of an NF4 tensor, one per block of 64 values of the flattened tensor (ops/nf4.h).
// Plain: `absmax` is set. Double-quantized: `absmax` is null and scale i is nested_map[codes[i]] * nested_absmax[i / 256] + offset.
struct Nf4Scales {
  const float* absmax = nullptr;         // [ceil(n / 64)]
  const std::uint8_t* codes = nullptr;   // [ceil(n / 64)]
  const float* nested_map = nullptr;     // [256], as stored with the tensor
  const float* nested_absmax = nullptr;  // [ceil(blocks / 256)]
  float offset = 0;
};

// A weight, in the type it is stored in: [rows = outputs, cols = inputs], row-major and dense. f32, f16, bf16 or nf4.
// `data` may have any alignment (it is often a mapped file). The scales' floats must be 4-byte aligned.
struct Matrix {
  Dtype dtype = Dtype::f32;
  std::int64_t rows = 0, cols = 0;
  const void* data = nullptr;
  Nf4Scales nf4{};
};

}  // namespace engine
