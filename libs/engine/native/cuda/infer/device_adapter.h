// device_adapter.h: adapters in device memory, for generation.
//   Of every adapted projection A [slot, inputs] and s·B [outputs, slot], bf16, zero beyond the adapter's rank; slot is the rank rounded up to a multiple of
//   16 (ops/lora.h). The A of one fused product lie one below another, so that one product shrinks for all of them.
//   With DoRA c = m / ‖V‖ [outputs], fp32, from the norms that the adapter holds (model/lora.h): of the base as stored. Modules trained whole are bf16.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "core/bf16.h"
#include "cuda/model/geometry.h"
#include "cuda/ops/dora_rows.h"
#include "cuda/ops/embed.h"
#include "cuda/ops/lora_rows.h"
#include "cuda/ops/view.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "model/lora.h"

namespace engine::cuda {

// An adapter's part of one fused product.
struct AdapterGroup {
  struct Part {
    View<bf16> b;                    // [outputs, slot]
    float* factor = nullptr;         // c [outputs] with DoRA
    std::int64_t projection = 0;     // which of the group's
    std::int64_t first_output = 0;   // of the product
    std::int64_t first_slot = 0;     // row of a, column of what it shrinks to
  };
  View<bf16> a;                      // [slots, inputs]; no rows where the product is not adapted
  std::vector<Part> parts;
};

class DeviceAdapter {
 public:
  // Uploads; waits for the copies. An adapter with DoRA is bound. Throws oom.
  DeviceAdapter(const LoraAdapter& adapter, const Geometry& geometry, std::int64_t layers, const Stream& stream);

  // Bytes of device memory that it takes.
  static std::int64_t bytes(const LoraAdapter& adapter, const Geometry& geometry, std::int64_t layers);

  const AdapterGroup& group(std::int64_t layer, Group group) const { return groups_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(group)]; }
  // [vocab, hidden]; null where the base's is used.
  const bf16* embedding() const noexcept { return embedding_; }
  const bf16* head() const noexcept { return head_; }
  std::int64_t bytes() const noexcept { return memory_.bytes(); }

 private:
  DeviceMemory memory_;
  std::vector<std::array<AdapterGroup, kGroups>> groups_;
  bf16 *embedding_ = nullptr, *head_ = nullptr;
};

// The largest slot of any projection.
std::int64_t widest_slot(const LoraAdapter& adapter);

// The adapters that are on the device, and the tables by which kernels find them (ops/lora_rows.h, dora_rows.h, embed.h). What was used longest ago goes when another needs its
// room or its number.
class AdapterCache {
 public:
  static constexpr std::int64_t kMostAdapters = 256;

  // Borrows the geometry, which has no adapters of its own. Throws oom.
  AdapterCache(const Geometry& geometry, std::int64_t layers, std::int64_t budget);

  // An adapter on the device: its number in the table, and what it holds.
  struct Resident {
    std::int32_t number = 0;
    const DeviceAdapter* adapter = nullptr;
  };
  // Those used since then stay until the next call.
  void begin_step() noexcept { ++step_; }
  // Uploads it if need be. Throws oom when the adapters of one step do not fit together.
  Resident use(const std::shared_ptr<const LoraAdapter>& adapter, const Stream& stream);

  // [kMostAdapters, projections of the group] of a product, on the device.
  const LoraEntry* entries(std::int64_t layer, Group group) const noexcept { return device_.entries + first_place(layer, group); }
  const float* const* factors(std::int64_t layer, Group group) const noexcept { return device_.factors + first_place(layer, group); }
  const bf16* const* embeddings() const noexcept { return device_.embeddings; }  // [kMostAdapters]
  std::int64_t budget() const noexcept { return budget_; }
  std::int64_t used() const noexcept { return used_; }

  // Bytes of the tables.
  static std::int64_t table_bytes(std::int64_t layers);

 private:
  struct Entry {
    std::weak_ptr<const LoraAdapter> source;
    std::unique_ptr<DeviceAdapter> adapter;
    std::int32_t number = 0;
    std::uint64_t step = 0;
  };
  struct Tables {
    LoraEntry* entries;         // [layer][group][kMostAdapters, projections]
    const float** factors;      // likewise
    const bf16** embeddings;    // [kMostAdapters]
    static Tables take(DeviceArena& arena, std::int64_t layers);
  };
  std::int64_t first_place(std::int64_t layer, Group group) const noexcept;
  void forget(std::list<Entry>::iterator entry);
  void make_room(std::int64_t bytes);
  void write_tables(const Entry& entry, const Stream& stream);

  const Geometry& geometry_;
  std::int64_t layers_, budget_, used_ = 0;
  std::uint64_t step_ = 0;
  std::list<Entry> entries_;           // used longest ago first
  std::vector<std::int32_t> numbers_;  // that nobody has
  DeviceMemory device_memory_;
  std::vector<std::byte> host_memory_;
  Tables device_, host_;               // in these
};

}  // namespace engine::cuda
