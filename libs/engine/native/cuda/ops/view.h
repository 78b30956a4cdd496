// view.h: a matrix in device memory.   Element (r, c) at data[r * stride + c]; sizes and strides in elements. Borrows; never frees.
//   Unless an operation says otherwise, views of bf16 begin at 16-byte aligned addresses and have strides that are multiples of 8, so that rows can be
//   moved 16 bytes at a time. A slice whose first column is a multiple of 8 keeps that. Columns beyond `cols` are never touched.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/bf16.h"

namespace engine::cuda {

template <class T>
struct View {
  T* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;

  constexpr View() = default;
  constexpr View(T* d, std::int64_t r, std::int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  constexpr View(T* d, std::int64_t r, std::int64_t c, std::int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  // A view that writes may be read through.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr View(View<U> other) : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}  // NOLINT: meant to convert

  constexpr T* row(std::int64_t r) const noexcept { return data + r * stride; }
  constexpr View columns(std::int64_t first, std::int64_t count) const noexcept { return {data + first, rows, count, stride}; }
  constexpr View row_range(std::int64_t first, std::int64_t count) const noexcept { return {data + first * stride, count, cols, stride}; }
};

}  // namespace engine::cuda
