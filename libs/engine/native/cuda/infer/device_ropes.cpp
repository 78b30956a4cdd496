#include "cuda/infer/device_ropes.h"

#include <algorithm>

namespace engine::cuda {
namespace {

std::int64_t table_rows(const ModelSpec& spec, std::int64_t most_rows) { return std::max(spec.context, most_rows); }

std::vector<DeviceRopes::Table> take_tables(DeviceArena& arena, const ModelSpec& spec, std::int64_t rows) {
  std::vector<DeviceRopes::Table> tables;
  for (const RopeParameters& rope : spec.ropes) {
    const std::int64_t n = rows * rope.rotary_dim / 2;
    const float* cos = arena.take<float>(n);
    tables.push_back({cos, arena.take<float>(n), rope.rotary_dim, false});
  }
  return tables;
}

}  // namespace

std::int64_t DeviceRopes::bytes(const ModelSpec& spec, std::int64_t most_rows) {
  DeviceArena counter;
  take_tables(counter, spec, table_rows(spec, most_rows));
  return counter.used();
}

DeviceRopes::DeviceRopes(const ModelSpec& spec, std::int64_t most_rows)
    : cache_(spec.ropes), memory_(bytes(spec, most_rows)), rows_(table_rows(spec, most_rows)), uploaded_(spec.ropes.size(), 0) {
  DeviceArena arena(memory_.data(), memory_.bytes());
  tables_ = take_tables(arena, spec, rows_);
}

void DeviceRopes::prepare(std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths, const Stream& stream) {
  cache_.prepare(positions, lengths);
  bool copied = false;
  for (std::size_t r = 0; r < tables_.size(); ++r) {
    Table& to = tables_[r];
    const Rotation rotation = cache_.at(static_cast<int>(r));
    to.by_row = rotation.positions != positions.data();
    const std::int64_t rows = std::min(rotation.table->count, rows_), half = to.rotary_dim / 2;
    if (!to.by_row && uploaded_[r] >= rows) continue;
    copy_to_device(const_cast<float*>(to.cos), rotation.table->cos.data(), rows * half * 4, stream);
    copy_to_device(const_cast<float*>(to.sin), rotation.table->sin.data(), rows * half * 4, stream);
    uploaded_[r] = to.by_row ? 0 : rows;
    copied = true;
  }
  if (copied) stream.synchronize();  // the host's tables may change with the next step
}

bool DeviceRopes::any_by_row() const noexcept {
  return std::ranges::any_of(tables_, &Table::by_row);
}

}  // namespace engine::cuda
