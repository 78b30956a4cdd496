// geometry.h: the four fused products of a block, and where its adapters lie in them.
//   qkv      [q; k; v]   of norm(x)          o     of the attention's output
//   gate_up  [gate; up]  of norm(middle)     down  of act(gate) · up
//   A product's decoded weight lies in a matrix S [outputs + tail, inputs + tail] with the adapters in its tail (ops/lora.h), so that activations carry
//   `tail` columns behind their own. Without adapters the tail is 0. Every layer has the same places, wide enough for the highest rank that any layer has
//   there; a layer that adapts nothing of a product leaves its tail out.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "model/lora.h"
#include "model/spec.h"

namespace engine::cuda {

enum class Group : std::uint8_t { qkv, o, gate_up, down };
inline constexpr int kGroups = 4;
const char* group_name(Group group) noexcept;

// One projection of a group.
struct GroupPart {
  Projection projection;
  std::int64_t first_output = 0, outputs = 0;
  std::int64_t first_slot = 0, slot = 0;  // its columns of the tail; none when no layer adapts it
};

struct GroupShape {
  std::int64_t outputs = 0, inputs = 0;
  std::int64_t tail = 0;  // a multiple of 64, so that the sum's length stays one where the inputs' is; 0 without adapters
  std::vector<GroupPart> parts;

  std::int64_t rows() const noexcept { return outputs + tail; }
  std::int64_t stride() const noexcept { return inputs + tail; }
  std::int64_t elements() const noexcept { return rows() * stride(); }
};

struct Geometry {
  std::array<GroupShape, kGroups> groups;
  std::vector<std::array<bool, kGroups>> adapted;  // [layer] whether it adapts anything of the product
  bool dora = false;
  bool dropout = false;  // adapters see masked inputs, so their part of an input's gradient is a product of its own

  const GroupShape& operator[](Group group) const noexcept { return groups[static_cast<std::size_t>(group)]; }
  bool decomposes(Group group) const noexcept { return dora && (*this)[group].tail > 0; }  // in some layer
  bool adapts(std::int64_t layer, Group group) const noexcept { return adapted[static_cast<std::size_t>(layer)][static_cast<std::size_t>(group)]; }
  // Widest tail that activations of these groups carry.
  std::int64_t tail(Group a, Group b) const noexcept { return std::max((*this)[a].tail, (*this)[b].tail); }
  std::int64_t layer_elements() const noexcept;    // of the four matrices S together
  std::int64_t largest_elements() const noexcept;  // of the largest
};

// Of a model and the places of its adapter's values, or of a model alone. Throws unsupported, naming it, for a shape that the device's operations do not
// take.
Geometry make_geometry(const ModelSpec& spec, const LoraAdapter& adapter);
Geometry make_geometry(const ModelSpec& spec);

}  // namespace engine::cuda
