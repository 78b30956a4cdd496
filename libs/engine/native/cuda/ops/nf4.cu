// nf4.cu: one block a row, one thread for each 8 codes. Reads 0.516 B and writes 2 B a value, so memory bandwidth is the limit: 2.516 B · N · K.
//   A code becomes its value by a shuffle: lanes 0…15 of each half warp hold the code book, which costs no memory and has no bank conflicts.
#include "core/code_tables.h"
#include "core/error.h"
#include "cuda/ops/nf4.h"
#include "cuda/ops/nf4_decode.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 128, kUnroll = 2;

__global__ void __launch_bounds__(kThreads) dequantize_eights(DeviceNf4 weight, NfBook book, View<bf16> out) {
  const std::int64_t row = blockIdx.x, first = row * out.cols;
  const float value = book.value[lane_id() % 16];
  const auto* words = reinterpret_cast<const std::uint32_t*>(weight.codes) + first / 8;
  const auto units = static_cast<unsigned>(out.cols / 8);
  bf16* to = out.row(row);
  for (unsigned base = 0; base < units; base += kUnroll * kThreads) {  // all lanes stay: they hold each other's values
    std::uint32_t codes[kUnroll] = {};
    float scales[kUnroll] = {};
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u) {  // all loads before the first use
      const unsigned unit = base + u * kThreads + threadIdx.x;
      if (unit >= units) continue;
      codes[u] = words[unit];
      scales[u] = nf4_scale(weight, (first + 8 * std::int64_t{unit}) / kNf4Block);
    }
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u) {
      const unsigned unit = base + u * kThreads + threadIdx.x;
      float decoded[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) decoded[i] = shuffle(value, codes[u] >> nf4_shift(i), 16) * scales[u];
      if (unit < units) store16(to + 8 * unit, pack8(decoded));
    }
  }
}

// Rows whose length is not a multiple of 8: two values a thread, which share a byte and so a scale.
__global__ void __launch_bounds__(kThreads) dequantize_pairs(DeviceNf4 weight, NfBook book, View<bf16> out) {
  const std::int64_t row = blockIdx.x, first = row * out.cols;
  for (std::int64_t c = 2 * threadIdx.x; c < out.cols; c += 2 * kThreads) {
    const std::uint8_t byte = weight.codes[(first + c) / 2];
    const float scale = nf4_scale(weight, (first + c) / kNf4Block);
    out.row(row)[c] = narrow(book.value[byte >> 4] * scale);
    out.row(row)[c + 1] = narrow(book.value[byte & 15] * scale);
  }
}

}  // namespace

DeviceNf4 device_nf4(const Matrix& weight) {
  require(weight.dtype == Dtype::nf4, "the weight is ", dtype_name(weight.dtype), ", not nf4");
  const Nf4Scales& s = weight.nf4;
  return {static_cast<const std::uint8_t*>(weight.data), s.absmax, s.codes, s.nested_map, s.nested_absmax, s.offset};
}

NfBook nf4_book() {
  NfBook book{};
  for (std::size_t i = 0; i < 16; ++i) book.value[i] = kNf4[i];
  return book;
}

void nf4_dequantize(const Matrix& weight, View<bf16> out, cudaStream_t stream) {
  require(out.rows == weight.rows && out.cols == weight.cols, "the weight is ", weight.rows, "x", weight.cols, ", its scratch ", out.rows, "x", out.cols);
  require(weight.cols % 2 == 0, "an NF4 weight has ", weight.cols, " columns; the device needs an even number");
  if (out.rows == 0 || out.cols == 0) return;
  launch(stream, blocks(out.rows), kThreads, 0, weight.cols % 8 == 0 ? dequantize_eights : dequantize_pairs, device_nf4(weight), nf4_book(), out);
}

}  // namespace engine::cuda
