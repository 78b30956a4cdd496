#include "ops/linear_vector.h"

#include <algorithm>

#include "ops/decode.h"
#include "ops/dispatch.h"
#include "ops/nf4.h"

namespace engine {

#ifdef ENGINE_X86
namespace {

constexpr std::int64_t kGrainBytes = 16384;  // of weights: what is too little to hand to another thread
constexpr std::int64_t kMostLanes = 16, kMostSweep = lane_sweep(kMostLanes);

std::int64_t row_bytes(const Matrix& w) { return w.dtype == Dtype::nf4 ? w.cols / 2 : w.cols * dtype_size(w.dtype); }

// How a weight's rows are read.
enum class Reads { nf4, bf16, f32, decoded };

Reads reads_of(const Matrix& w) {
  if (w.dtype == Dtype::nf4 && w.cols % kNf4Block == 0) return Reads::nf4;
  if (w.dtype == Dtype::bf16) return Reads::bf16;
  return w.dtype == Dtype::f32 && reinterpret_cast<std::uintptr_t>(w.data) % alignof(float) == 0 ? Reads::f32 : Reads::decoded;
}

// One group of weight rows over one sweep.
struct Group {
  std::int64_t first;  // weight row
  int rows;
  std::int64_t at, width;
};

class Sweeper {
 public:
  Sweeper(const Exec& ex, const LinearVectorRows& kernel, const Matrix& w, std::int64_t stride)
      : ex_(ex), kernel_(kernel), w_(w), stride_(stride), reads_(reads_of(w)), bytes_(static_cast<const std::uint8_t*>(w.data)),
        row_bytes_(row_bytes(w)) {}

  // Scales of a group, once for all rows of x.
  void begin(const Group& g) {
    if (reads_ != Reads::nf4) return;
    const std::int64_t blocks = w_.cols / kNf4Block, first = g.first * blocks + g.at / kNf4Block;
    absmax_ = w_.nf4.absmax != nullptr ? w_.nf4.absmax + first : scales_;
    absmax_stride_ = w_.nf4.absmax != nullptr ? blocks : g.width / kNf4Block;
    if (w_.nf4.absmax == nullptr)
      for (int r = 0; r < g.rows; ++r) kernel_.scales(w_.nf4, first + r * blocks, absmax_stride_, scales_ + r * absmax_stride_);
  }
  // sums[t][row][lane] of `count` rows of x.
  void add(const Group& g, const float* x, int count, float* sums) {
    const bool round = ex_.compute == Compute::bf16;
    const std::uint8_t* rows = bytes_ + g.first * row_bytes_;
    switch (reads_) {
      case Reads::nf4:
        return kernel_.nf4(x + g.at, stride_, count, rows + g.at / 2, row_bytes_, absmax_, absmax_stride_, g.rows, g.width / kNf4Block, round, sums);
      case Reads::bf16: return kernel_.bf16(x + g.at, stride_, count, rows + g.at * 2, row_bytes_, g.rows, g.width, sums);
      case Reads::f32: return kernel_.f32(x + g.at, stride_, count, reinterpret_cast<const float*>(rows) + g.at, w_.cols, g.rows, g.width, round, sums);
      case Reads::decoded:
        for (int r = 0; r < g.rows; ++r) {
          float decoded[kMostSweep];
          decode_weight(ex_.isa, w_, (g.first + r) * w_.cols + g.at, g.width, decoded);
          kernel_.f32(x + g.at, stride_, count, decoded, 0, 1, g.width, round, sums + r * kernel_.lanes);
        }
    }
  }

 private:
  const Exec& ex_;
  const LinearVectorRows& kernel_;
  const Matrix& w_;
  std::int64_t stride_;
  Reads reads_;
  const std::uint8_t* bytes_;
  std::int64_t row_bytes_;
  const float* absmax_ = nullptr;
  std::int64_t absmax_stride_ = 0;
  float scales_[kMostLanes * kMostSweep / kNf4Block];
};

}  // namespace

void linear_vector(const Exec& ex, ConstRows x, const Matrix& w, const float* bias, Rows y, bool accumulate) {
  const LinearVectorRows& kernel = ex.isa >= Isa::avx512 ? linear_vector_rows_avx512 : linear_vector_rows_avx2;
  const std::int64_t lanes = kernel.lanes, step = 2 * lanes, stride = (w.cols + step - 1) / step * step;
  auto* operand = static_cast<float*>(ex.pool.shared_workspace(static_cast<std::size_t>(x.rows * stride * 4)));
  for (std::int64_t t = 0; t < x.rows; ++t) kernel.rearrange(x.row(t), w.cols, ex.compute == Compute::bf16, operand + t * stride);

  const std::int64_t groups = (w.rows + lanes - 1) / lanes;
  ex.pool.for_ranges(groups, kGrainBytes / (row_bytes(w) * lanes + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    Sweeper sweeper(ex, kernel, w, stride);
    alignas(64) float sums[kVectorCount * kMostLanes * kMostLanes];
    for (std::int64_t n = begin * lanes; n < std::min(end * lanes, w.rows); n += lanes)
      for (std::int64_t at = 0; at < w.cols; at += lane_sweep(lanes)) {
        const Group group{n, static_cast<int>(std::min(lanes, w.rows - n)), at, std::min(lane_sweep(lanes), w.cols - at)};
        sweeper.begin(group);
        for (std::int64_t t = 0; t < x.rows; t += kVectorCount) {
          const int count = static_cast<int>(std::min<std::int64_t>(kVectorCount, x.rows - t));
          sweeper.add(group, operand + t * stride, count, sums);
          for (int i = 0; i < count; ++i)
            kernel.finish(sums + i * lanes * lanes, group.rows, at == 0 && bias != nullptr ? bias + n : nullptr, accumulate || at > 0, y.row(t + i) + n);
        }
      }
  });
}
#else
void linear_vector(const Exec&, ConstRows, const Matrix&, const float*, Rows, bool) {}
#endif

}  // namespace engine
