#include "ops/linear_vector.h"

#include <algorithm>

#include "ops/decode.h"
#include "ops/decode_rows.h"
#include "ops/dispatch.h"
#include "ops/nf4.h"

namespace engine {

#ifdef ENGINE_X86
namespace {

constexpr std::int64_t kGrainBytes = 16384;  // of weights: what is too little to hand to another thread

std::int64_t row_bytes(const Matrix& w) { return w.dtype == Dtype::nf4 ? w.cols / 2 + w.cols / kNf4Block * 4 : w.cols * dtype_size(w.dtype); }

}  // namespace

void linear_vector(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate) {
  const LinearVectorRows& kernel = ex.isa >= Isa::avx512 ? linear_vector_rows_avx512 : linear_vector_rows_avx2;
  const bool round = ex.compute == Compute::bf16;
  const bool blocks_fit_rows = w.dtype == Dtype::nf4 && w.cols % kNf4Block == 0;
  const bool packed = blocks_fit_rows || w.dtype == Dtype::bf16;
  const int count = static_cast<int>(x.rows);
  const std::int64_t stride = (w.cols + 63) / 64 * 64, blocks = w.cols / kNf4Block;

  auto* operand = static_cast<float*>(ex.pool.shared_workspace(static_cast<std::size_t>(count * stride * 4)));
  for (int t = 0; t < count; ++t) {
    if (packed)
      kernel.rearrange(x.row(t), w.cols, round, operand + t * stride);
    else if (round)
      ENGINE_ROWS(ex.isa, decode_rows).round_bf16(x.row(t), w.cols, operand + t * stride);
    else
      std::copy_n(x.row(t), w.cols, operand + t * stride);
  }

  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  ex.pool.for_ranges(w.rows, kGrainBytes / (row_bytes(w) + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    // A row goes by in pieces, so that its scales or decoded weights fit the stack.
    constexpr std::int64_t kPiece = 1024;
    float scales[kPiece / kNf4Block], decoded[kPiece];
    for (std::int64_t n = first; n < last; ++n) {
      float sums[4] = {};
      for (std::int64_t at = 0; at < w.cols; at += kPiece) {
        const std::int64_t width = std::min(kPiece, w.cols - at);
        float piece[4];
        if (blocks_fit_rows) {
          const std::int64_t block = n * blocks + at / kNf4Block, many = width / kNf4Block;
          const float* absmax = w.nf4.absmax != nullptr ? w.nf4.absmax + block : scales;
          if (w.nf4.absmax == nullptr) kernel.scales(w.nf4, block, many, scales);
          kernel.nf4(operand + at, stride, count, bytes + (n * w.cols + at) / 2, absmax, many, round, piece);
        } else if (w.dtype == Dtype::bf16) {
          kernel.bf16(operand + at, stride, count, bytes + (n * w.cols + at) * 2, width, piece);
        } else {
          const float* values = decoded;
          if (w.dtype == Dtype::f32 && reinterpret_cast<std::uintptr_t>(bytes) % alignof(float) == 0)
            values = reinterpret_cast<const float*>(bytes) + n * w.cols + at;
          else
            decode_weight(ex.isa, w, n * w.cols + at, width, decoded);
          kernel.f32(operand + at, stride, count, values, width, round, piece);
        }
        for (int t = 0; t < count; ++t) sums[t] += piece[t];
      }
      for (int t = 0; t < count; ++t) {
        float& out = y.row(t)[n];
        const float value = bias != nullptr ? sums[t] + bias[n] : sums[t];
        out = accumulate ? out + value : value;
      }
    }
  });
}
#else
void linear_vector(const Exec&, ConstRows, const Matrix&, const float*, Rows, bool) {}
#endif

}  // namespace engine
