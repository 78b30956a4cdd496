// decoder.h: one step of generation on a device: token ids to tokens and log-probabilities.   The definition is model/forward.cpp over a cache.
//   Everything that a step's shape does not fix is read from device memory, so that the work given to the stream can be captured and replayed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cuda/infer/device_kv.h"
#include "cuda/infer/device_ropes.h"
#include "cuda/infer/products.h"
#include "cuda/infer/runner_memory.h"
#include "cuda/infer/runner_input.h"

namespace engine::cuda {

// What is known of a step when its work is given to the stream.
struct StepShape {
  std::int64_t rows = 0;
  bool captured = false;
  std::int64_t most_tokens = 0;         // no row's position + 1 is larger; table_stride · kPageTokens
  std::int64_t table_stride = 0;
  std::int64_t tiles = 0;               // of prompts' chunks
  // Rows of single tokens, in runs [first, first + count); those of chunks are in tiles.
  struct Run {
    std::int64_t first = 0, count = 0;
  };
  std::vector<Run> singles;
  bool any_order = false;               // a row's sums may be ordered as suits the number of rows
  bool apart = false;                   // each row of the runs is its sequence's only one of the step
  std::int64_t wanted = 0;
  bool all_wanted = false;              // row i is wanted i
  std::span<const HeadRows> heads;       // of the wanted rows; none: the base's is everybody's
  bool scores = false, choices = false;  // some wanted rows are to be scored; some tokens, or their distribution's sum, are
};

enum class Phase : std::uint8_t { products, attention, sampling };

class Decoder {
 public:
  // Borrows everything. `mark` is called where the work of a phase has been given.
  Decoder(const ModelSpec& spec, const Geometry& geometry, const RunnerMemory& memory, const DeviceKv& kv, const DeviceRopes& ropes, const AdapterCache& adapters,
          Products& products)
      : spec_(spec), geometry_(geometry), memory_(memory), kv_(kv), ropes_(ropes), adapters_(adapters), products_(products) {}

  // The blocks: ids to hidden states, in the buffers' x.
  void hidden(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters, const std::function<void(Phase)>& mark, cudaStream_t stream);
  // Wanted rows [first, first + count), at most buffers.wanted_rows: their logits, tokens, log-probabilities and scores.
  void choose(const StepShape& shape, const RunnerInput& input, std::int64_t first, std::int64_t count, cudaStream_t stream);

 private:
  View<bf16> rows(bf16* data, std::int64_t count, std::int64_t cols) const noexcept { return {data, count, cols}; }
  void attend(std::int64_t layer, const StepShape& shape, const RunnerInput& input, cudaStream_t stream);
  void add_sublayer(const float* norm, View<bf16> x, cudaStream_t stream);

  const ModelSpec& spec_;
  const Geometry& geometry_;
  const RunnerMemory& memory_;
  const DeviceKv& kv_;
  const DeviceRopes& ropes_;
  const AdapterCache& adapters_;
  Products& products_;
};

}  // namespace engine::cuda
