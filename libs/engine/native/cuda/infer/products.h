// products.h: the products of a decoder's blocks when it generates: few rows or many, over a base that is NF4 or 16-bit, with adapters.
//   y = x·Wᵀ + bias + (x·Aᵀ)·(s·B)ᵀ      A and B of each row's own adapter; with DoRA y = c · (x·Wᵀ + (x·Aᵀ)·(s·B)ᵀ) + bias (ops/dora_rows.h)
//   Up to `crossover` rows an NF4 weight is decoded while it is read, once for all rows (ops/nf4_gemv.h). Above it the product is one of bf16 matrices: of
//   copies that were decoded once, before the weights were packed, where there is memory for them, else of weights decoded into scratch, whose scales are then
//   the packed ones (within 2^-11); then adapters add to what was already rounded.
//   With SumOrder::same_for_any_rows a row's bits do not depend on the rows beside it: NF4 weights are always decoded while they are read, and bf16 ones
//   go to the engine's own kernel, which sums in one order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/exec.h"
#include "cuda/infer/device_adapter.h"
#include "cuda/model/device_weights.h"
#include "cuda/ops/gemm.h"
#include "cuda/ops/nf4_gemv.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/stream.h"
#include "ops/glu.h"

namespace engine::cuda {

// Rows up to which an NF4 product that decodes while it reads is the faster one, beside decoded copies too (measured, docs/performance.md): all it takes.
inline constexpr std::int64_t kNf4Crossover = kGemvRows;

// The same of the head, beside the library.
inline constexpr std::int64_t kHeadCrossover = 32;

// Many rows of one adapter, whose low-rank products are worth matrices of their own.
struct AdapterSegment {
  std::int64_t first = 0, count = 0;
  const DeviceAdapter* adapter = nullptr;
};
inline constexpr std::int64_t kSegmentRows = 32;

// The adapters of a step's rows.
struct StepAdapters {
  std::int64_t ranks = 0;                    // no rank is larger; 0: no row has an adapter
  const std::int32_t* all = nullptr;         // [R] on the device: each row's number in the table, or -1
  const std::int32_t* others = nullptr;      // the same with -1 for the rows of segments
  bool any_other = false;                    // a row has an adapter and is in no segment
  bool dora = false;                         // a row's adapter has magnitudes
  bool embeddings = false;                   // a row's adapter has a token table of its own
  std::span<const AdapterSegment> segments;
};

// Neighbouring rows of logits that have one head.
struct HeadRows {
  std::int64_t first = 0, count = 0;
  const bf16* head = nullptr;  // [vocab, hidden]; null: the base's
};

// Decoded copies of NF4 products, [layer][group]; empty where none are kept.
using DecodedWeights = std::vector<std::array<bf16*, kGroups>>;

struct ProductBuffers {
  bf16* scratch = nullptr;  // the largest decoded product; null where all are kept decoded, or none is ever
  bf16* normed = nullptr;   // [R, hidden]; what a product with magnitudes adds to waits here
  bf16* gate_up = nullptr;  // [R, 2 · ffn]
  bf16* low = nullptr;      // [R, 3 · ranks]
  void* gemv_workspace = nullptr;  // nf4_gemv_workspace(kGemvRows, the deepest K) bytes, zeroed once
};

class Products {
 public:
  struct Options {
    SumOrder order = SumOrder::fastest;
    std::int64_t crossover = kNf4Crossover;
  };
  // Borrows everything. Throws oom.
  Products(const ModelSpec& spec, const Geometry& geometry, const DeviceWeights& weights, const DecodedWeights& decoded, const AdapterCache& table,
           const ProductBuffers& buffers, const Options& options);

  // Chooses by timing how products of so many rows go over bf16 copies. Scratch as for Gemm::tune; where it is too small, the library's guess stays.
  void tune(std::int64_t rows, void* scratch, std::int64_t scratch_bytes, cudaStream_t stream);
  // Of one step: whose rows they are.
  void begin(const StepAdapters& adapters, cudaStream_t stream) noexcept {
    adapters_ = adapters;
    stream_ = stream;
  }
  // y [R, outputs] of x [R, inputs]. With `norm` (weight not null) of the normalized rows. With `onto`, y is added to what it holds.
  enum class Onto : std::uint8_t { nothing, y };
  void operator()(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, View<bf16> y, Onto onto);
  // y [R, ffn] = act(gate) · up of the (normalized) rows.
  void gated(std::int64_t layer, View<bf16> x, const RmsNorm& norm, View<bf16> y);
  // logits [R, vocab] of x [R, hidden] before the final norm. `heads` cover the rows in order; without any the base's is everybody's.
  void head(View<bf16> x, const RmsNorm& norm, std::span<const HeadRows> heads, View<float> logits, cudaStream_t stream);

 private:
  std::int64_t head_crossover() const noexcept;
  bool reads_nf4(std::int64_t layer, Group group, std::int64_t rows) const noexcept;
  View<bf16> normalize(View<bf16> x, const RmsNorm& norm) const;
  RowAdapters row_adapters(std::int64_t layer, Group group, const std::int32_t* of) const;
  GemvExtras gemv_extras(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, std::int64_t first) const;
  const PackedNf4& packed(std::int64_t layer, Group group) const noexcept;
  View<const bf16> decoded(std::int64_t layer, Group group) const;
  void product(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y, Onto onto);   // of decoded weights, without adapters
  void multiply(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y, Onto onto);  // with them
  View<bf16> shrink_beside(View<const bf16> x, const RowAdapters& rows);
  void add_segments(std::int64_t layer, Group group, View<const bf16> x, View<bf16> y);
  RowFactors row_factors(std::int64_t layer, Group group, std::int64_t first) const;
  LoraColumns columns(Group group) const;
  void plain(std::int64_t layer, Group group, View<bf16> x, const RmsNorm& norm, View<bf16> y, Onto onto);  // but for magnitudes
  void gate_up_tiles(std::int64_t layer, View<bf16> x, const GemvExtras& extras, std::int64_t first, View<bf16> y);
  void multiply_head(View<bf16> x, const bf16* head, View<float> logits);

  const ModelSpec& spec_;
  const Geometry& geometry_;
  const DeviceWeights& weights_;
  const DecodedWeights& decoded_;
  const AdapterCache& table_;
  ProductBuffers buffers_;
  Options options_;
  Gemm gemm_;
  StepAdapters adapters_;
  cudaStream_t stream_ = nullptr;
  const Stream beside_;
  Event given_, shrunk_;
};

// Decodes the parts of a product as stored, one below another, into `to` [outputs, inputs].
void decode_parts(const Nf4Parts& parts, const GroupShape& shape, bf16* to, cudaStream_t stream);

}  // namespace engine::cuda
