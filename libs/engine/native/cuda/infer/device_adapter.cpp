#include "cuda/infer/device_adapter.h"

#include <algorithm>
#include <functional>
#include <optional>

#include "core/error.h"
#include "cuda/model/device_weights.h"
#include "cuda/ops/lora.h"

namespace engine::cuda {
namespace {

using Groups = std::vector<std::array<AdapterGroup, kGroups>>;

// Takes room for one product's part; pointers are null while the arena counts.
AdapterGroup take_group(DeviceArena& arena, const LoraAdapter& adapter, std::int64_t layer, const GroupShape& shape) {
  AdapterGroup group;
  std::int64_t slots = 0;
  for (const GroupPart& part : shape.parts)
    if (const LoraPair* at = adapter.pair(layer, part.projection)) slots += slot_columns(at->rank);
  if (slots == 0) return group;
  group.a = {arena.take<bf16>(slots * shape.inputs), slots, shape.inputs};
  std::int64_t first_slot = 0;
  for (std::size_t p = 0; p < shape.parts.size(); ++p) {
    const GroupPart& part = shape.parts[p];
    const LoraPair* at = adapter.pair(layer, part.projection);
    if (at == nullptr) continue;
    const std::int64_t slot = slot_columns(at->rank);
    const View<bf16> b{arena.take<bf16>(part.outputs * slot), part.outputs, slot};
    float* factor = adapter.config().dora ? arena.take<float>(part.outputs) : nullptr;
    group.parts.push_back({b, factor, static_cast<std::int64_t>(p), part.first_output, first_slot});
    first_slot += slot;
  }
  return group;
}

Groups take_groups(DeviceArena& arena, const LoraAdapter& adapter, const Geometry& geometry, std::int64_t layers) {
  Groups groups(static_cast<std::size_t>(layers));
  for (std::int64_t layer = 0; layer < layers; ++layer)
    for (std::size_t g = 0; g < kGroups; ++g) groups[static_cast<std::size_t>(layer)][g] = take_group(arena, adapter, layer, geometry.groups[g]);
  return groups;
}

// The adapter's values into host memory that is zero and laid out as the device's.
void fill_group(const AdapterGroup& group, const LoraAdapter& adapter, std::int64_t layer, const GroupShape& shape) {
  std::size_t next = 0;
  for (const GroupPart& part : shape.parts) {
    const LoraPair* at = adapter.pair(layer, part.projection);
    if (at == nullptr) continue;
    const AdapterGroup::Part& to = group.parts[next++];
    const float *a = adapter.data() + at->a, *b = adapter.data() + at->b;
    std::transform(a, a + at->rank * at->inputs, group.a.row(to.first_slot), to_bf16);
    for (std::int64_t r = 0; r < at->outputs; ++r)
      std::transform(b + r * at->rank, b + (r + 1) * at->rank, to.b.row(r), [at](float value) { return to_bf16(at->scale * value); });
    if (to.factor == nullptr) continue;
    const float *magnitude = adapter.data() + at->magnitude, *inverse = adapter.inverse_norms() + at->norm;
    std::transform(magnitude, magnitude + at->outputs, inverse, to.factor, std::multiplies<>());
  }
}

bf16* take_whole(DeviceArena& arena, const std::optional<Matrix>& module) { return module ? arena.take<bf16>(module->rows * module->cols) : nullptr; }

}  // namespace

std::int64_t DeviceAdapter::bytes(const LoraAdapter& adapter, const Geometry& geometry, std::int64_t layers) {
  DeviceArena counter;
  take_groups(counter, adapter, geometry, layers);
  take_whole(counter, adapter.embedding());
  take_whole(counter, adapter.head());
  return counter.used();
}

DeviceAdapter::DeviceAdapter(const LoraAdapter& adapter, const Geometry& geometry, std::int64_t layers, const Stream& stream)
    : memory_(bytes(adapter, geometry, layers)) {
  DeviceArena device(memory_.data(), memory_.bytes());
  groups_ = take_groups(device, adapter, geometry, layers);
  std::vector<std::byte> image(static_cast<std::size_t>(device.used()));
  DeviceArena host(image.data(), device.used());
  const Groups filled = take_groups(host, adapter, geometry, layers);
  for (std::int64_t layer = 0; layer < layers; ++layer)
    for (std::size_t g = 0; g < kGroups; ++g) fill_group(filled[static_cast<std::size_t>(layer)][g], adapter, layer, geometry.groups[g]);
  copy_to_device(memory_.data(), image.data(), device.used(), stream);
  embedding_ = take_whole(device, adapter.embedding());
  head_ = take_whole(device, adapter.head());
  if (embedding_ != nullptr) upload_table(*adapter.embedding(), embedding_, false, stream);
  if (head_ != nullptr) upload_table(*adapter.head(), head_, false, stream);
  stream.synchronize();
}

std::int64_t widest_slot(const LoraAdapter& adapter) {
  std::int64_t widest = 0;
  for (int p = 0; p < kProjections; ++p) widest = std::max(widest, slot_columns(adapter.widest_rank(static_cast<Projection>(p))));
  return widest;
}

AdapterCache::AdapterCache(const Geometry& geometry, std::int64_t layers, std::int64_t budget)
    : geometry_(geometry), layers_(layers), budget_(budget), device_memory_(table_bytes(layers)), host_memory_(static_cast<std::size_t>(table_bytes(layers))) {
  DeviceArena device(device_memory_.data(), device_memory_.bytes()), host(host_memory_.data(), device_memory_.bytes());
  device_ = Tables::take(device, layers);
  host_ = Tables::take(host, layers);
  for (std::int32_t number = kMostAdapters; number-- > 0;) numbers_.push_back(number);
}

AdapterCache::Tables AdapterCache::Tables::take(DeviceArena& arena, std::int64_t layers) {
  const std::int64_t places = layers * kProjections * kMostAdapters;
  Tables tables{};
  tables.entries = arena.take<LoraEntry>(places);
  tables.factors = arena.take<const float*>(places);
  tables.embeddings = arena.take<const bf16*>(kMostAdapters);
  return tables;
}

std::int64_t AdapterCache::table_bytes(std::int64_t layers) {
  DeviceArena counter;
  Tables::take(counter, layers);
  return counter.used();
}

std::int64_t AdapterCache::first_place(std::int64_t layer, Group group) const noexcept {
  std::int64_t before = layer * kProjections;
  for (int g = 0; g < static_cast<int>(group); ++g) before += static_cast<std::int64_t>(geometry_.groups[static_cast<std::size_t>(g)].parts.size());
  return before * kMostAdapters;
}

void AdapterCache::forget(std::list<Entry>::iterator entry) {
  used_ -= entry->adapter->bytes();
  numbers_.push_back(entry->number);
  entries_.erase(entry);
}

void AdapterCache::make_room(std::int64_t bytes) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if (entry->source.expired()) forget(entry);
    entry = next;
  }
  while (used_ + bytes > budget_ || numbers_.empty()) {
    require(Code::oom, !entries_.empty() && entries_.front().step != step_, "the adapters of one step need ", used_ + bytes, " bytes of device memory; ", budget_,
            " are set aside for them, and for at most ", kMostAdapters, " of them");
    forget(entries_.begin());
  }
}

void AdapterCache::write_tables(const Entry& entry, const Stream& stream) {
  for (std::int64_t layer = 0; layer < layers_; ++layer)
    for (int g = 0; g < kGroups; ++g) {
      const auto parts = static_cast<std::int64_t>(geometry_.groups[static_cast<std::size_t>(g)].parts.size());
      const AdapterGroup& group = entry.adapter->group(layer, static_cast<Group>(g));
      const std::int64_t first = first_place(layer, static_cast<Group>(g)) + entry.number * parts;
      std::fill_n(host_.entries + first, parts, LoraEntry{});
      std::fill_n(host_.factors + first, parts, nullptr);
      for (const AdapterGroup::Part& part : group.parts) {
        host_.entries[first + part.projection] = {group.a.row(part.first_slot), part.b.data, static_cast<std::int32_t>(part.b.cols), 1.0f};  // B holds the scale
        host_.factors[first + part.projection] = part.factor;
      }
    }
  host_.embeddings[entry.number] = entry.adapter->embedding();
  copy_to_device(device_memory_.data(), host_memory_.data(), device_memory_.bytes(), stream);
  stream.synchronize();
}

AdapterCache::Resident AdapterCache::use(const std::shared_ptr<const LoraAdapter>& adapter, const Stream& stream) {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.source.lock() == adapter; });
  if (found != entries_.end()) {
    entries_.splice(entries_.end(), entries_, found);
  } else {
    make_room(DeviceAdapter::bytes(*adapter, geometry_, layers_));
    auto uploaded = std::make_unique<DeviceAdapter>(*adapter, geometry_, layers_, stream);
    entries_.push_back({adapter, std::move(uploaded), numbers_.back(), step_});
    numbers_.pop_back();
    used_ += entries_.back().adapter->bytes();
    write_tables(entries_.back(), stream);
  }
  Entry& entry = entries_.back();
  entry.step = step_;
  return {entry.number, entry.adapter.get()};
}

}  // namespace engine::cuda
