// weight_stage.h: decoded weights where products can read them, a matrix S (geometry.h) for a group of a layer at a time.
//   A layer whose weights are kept decoded has its own four matrices. The others share scratch: one matrix for every group, or a single one for all. With
//   one for every group, the next layer's weights are decoded on a second stream of low priority while products run.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda/model/device_weights.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/stream.h"
#include "model/lora.h"

namespace engine::cuda {

struct DecodedLayer {
  std::array<bf16*, kGroups> matrix{};
};

struct StageMemory {
  std::array<bf16*, kGroups> scratch{};  // all the same pointer when there is a single one
  std::vector<DecodedLayer> decoded;     // of the first layers; empty when none is kept decoded
  bool single() const noexcept { return scratch[0] == scratch[1]; }
};

class WeightStage {
 public:
  // Borrows everything. `master` are the adapter's fp32 values on the device, laid out as `adapter`.
  WeightStage(const ModelSpec& spec, const Geometry& geometry, const DeviceWeights& weights, const LoraAdapter& adapter, const float* master,
              const StageMemory& memory, const Stream& stream);

  // S [rows, stride] of a group, its adapters in the tail. Valid for work given to the stream until use() or prefetch() of another layer's same group.
  View<bf16> use(std::int64_t layer, Group group);
  // Decodes ahead, after the work given to the stream so far. Does nothing where it cannot help.
  void prefetch(std::int64_t layer, Group group);
  void synchronize() const { decoding_.synchronize(); }
  // The adapter's values have changed.
  void adapter_changed() noexcept { ++version_; }

 private:
  struct Slot {
    std::int64_t layer = -1;
    int group = -1;
    std::uint64_t version = 0;
    Event ready, free;
    bool waiting = false;  // the stream has not waited for `ready` yet
  };

  bf16* home(std::int64_t layer, Group group) const noexcept;  // null when the group lives in scratch
  View<bf16> matrix(bf16* data, Group group) const noexcept;
  void decode(std::int64_t layer, Group group, View<bf16> to, cudaStream_t stream) const;
  void pack(std::int64_t layer, Group group, View<bf16> to, cudaStream_t stream) const;
  void fill(Slot& slot, std::int64_t layer, Group group);

  const Geometry& geometry_;
  const DeviceWeights& weights_;
  const LoraAdapter& adapter_;
  const float* master_;
  const StageMemory& memory_;
  const Stream& stream_;
  Stream decoding_{Priority::low};
  std::array<Slot, kGroups> slots_;
  struct Home {
    bool decoded = false;
    std::uint64_t version = 0;
  };
  std::vector<std::array<Home, kGroups>> homes_;
  std::uint64_t version_ = 1;
};

}  // namespace engine::cuda
