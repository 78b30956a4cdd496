#include "cuda/model/geometry.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/ops/lora.h"

namespace engine::cuda {
namespace {

constexpr std::int64_t kTailMultiple = 64;

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

GroupShape make_group(const ModelSpec& spec, const LoraAdapter* adapter, std::initializer_list<Projection> projections) {
  GroupShape group;
  std::int64_t slots = 0;
  for (const Projection projection : projections) {
    const std::int64_t slot = adapter == nullptr ? 0 : slot_columns(adapter->widest_rank(projection));
    group.parts.push_back({projection, group.outputs, spec.rows(projection), slots, slot});
    slots += slot;
    group.inputs = spec.columns(projection);
    group.outputs += spec.rows(projection);
  }
  group.tail = round_up(slots, kTailMultiple);
  return group;
}

Geometry geometry_of(const ModelSpec& spec, const LoraAdapter* adapter) {
  Geometry geometry;
  geometry.groups = {make_group(spec, adapter, {Projection::q, Projection::k, Projection::v}), make_group(spec, adapter, {Projection::o}),
                     make_group(spec, adapter, {Projection::gate, Projection::up}), make_group(spec, adapter, {Projection::down})};
  for (std::int64_t layer = 0; layer < spec.layers; ++layer) {
    auto& adapted = geometry.adapted.emplace_back();
    for (std::size_t g = 0; g < kGroups; ++g)
      adapted[g] = adapter != nullptr && std::ranges::any_of(geometry.groups[g].parts, [&](const GroupPart& part) { return adapter->pair(layer, part.projection) != nullptr; });
  }
  return geometry;
}

void check_shape(const ModelSpec& spec) {
  const auto multiple_of_8 = [](std::int64_t n, const char* name) {
    require(Code::unsupported, n % 8 == 0, "on a GPU ", name, " must be a multiple of 8; this model's is ", n);
  };
  multiple_of_8(spec.hidden, "hidden_size");
  multiple_of_8(spec.ffn, "intermediate_size");
  require(Code::unsupported, spec.hidden <= 16384, "on a GPU hidden_size may be at most 16384; this model's is ", spec.hidden);
  constexpr std::array<std::int64_t, 6> head_dims{16, 32, 64, 96, 128, 256};
  require(Code::unsupported, std::ranges::find(head_dims, spec.head_dim) != head_dims.end(), "on a GPU head_dim may be 16, 32, 64, 96, 128 or 256; this model's is ",
          spec.head_dim);
}

}  // namespace

const char* group_name(Group group) noexcept {
  switch (group) {
    case Group::qkv: return "qkv";
    case Group::o: return "o";
    case Group::gate_up: return "gate_up";
    case Group::down: return "down";
  }
  return "";
}

std::int64_t Geometry::layer_elements() const noexcept {
  std::int64_t sum = 0;
  for (const GroupShape& group : groups) sum += group.elements();
  return sum;
}

std::int64_t Geometry::largest_elements() const noexcept {
  std::int64_t most = 0;
  for (const GroupShape& group : groups) most = std::max(most, group.elements());
  return most;
}

Geometry make_geometry(const ModelSpec& spec) {
  check_shape(spec);
  return geometry_of(spec, nullptr);
}

Geometry make_geometry(const ModelSpec& spec, const LoraAdapter& adapter) {
  check_shape(spec);
  Geometry geometry = geometry_of(spec, &adapter);
  geometry.dora = adapter.config().dora;
  geometry.dropout = adapter.config().dropout > 0;
  return geometry;
}

}  // namespace engine::cuda
