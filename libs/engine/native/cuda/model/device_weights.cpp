#include "cuda/model/device_weights.h"

#include <algorithm>
#include <cstring>

#include "core/code_tables.h"
#include "core/dtype.h"
#include "core/error.h"
#include "ops/dynamic8.h"
#include "ops/nf4.h"

namespace engine::cuda {
namespace {

constexpr std::int64_t kPieceElements = std::int64_t{16} << 20;

Projection projection_at(int p) { return static_cast<Projection>(p); }

bool is_nf4(const std::array<WeightFormat, kProjections>& format, const GroupShape& group) {
  return format[static_cast<std::size_t>(group.parts.front().projection)].nf4;
}

Matrix take_nf4(DeviceArena& arena, const ModelSpec& spec, Projection projection, const WeightFormat& format, const float* usual_map) {
  const std::int64_t n = spec.rows(projection) * spec.columns(projection), blocks = nf4_blocks(n);
  Matrix matrix{Dtype::nf4, spec.rows(projection), spec.columns(projection), arena.take<std::uint8_t>(nf4_bytes(n)), {}};
  if (format.double_quant) {
    matrix.nf4.codes = arena.take<std::uint8_t>(blocks);
    matrix.nf4.nested_absmax = arena.take<float>(dynamic_blocks(blocks));
    matrix.nf4.nested_map = format.own_map ? arena.take<float>(256) : usual_map;
  } else {
    matrix.nf4.absmax = arena.take<float>(blocks);
  }
  return matrix;
}

// Room that take() made is written once, by the upload.
template <class T>
void* writable(const T* room) {
  return const_cast<void*>(static_cast<const void*>(room));
}

void upload_nf4(const Matrix& from, Matrix& to, const float* usual_map, const Stream& stream) {
  const std::int64_t n = from.rows * from.cols, blocks = nf4_blocks(n);
  copy_to_device(writable(to.data), from.data, nf4_bytes(n), stream);
  if (to.nf4.codes == nullptr) {
    copy_to_device(writable(to.nf4.absmax), from.nf4.absmax, blocks * 4, stream);
    return;
  }
  copy_to_device(writable(to.nf4.codes), from.nf4.codes, blocks, stream);
  copy_to_device(writable(to.nf4.nested_absmax), from.nf4.nested_absmax, dynamic_blocks(blocks) * 4, stream);
  if (to.nf4.nested_map != usual_map) copy_to_device(writable(to.nf4.nested_map), from.nf4.nested_map, 256 * 4, stream);
  to.nf4.offset = from.nf4.offset;
}

// Device memory of one group's NF4 weights as they are stored.
class PackingRoom {
 public:
  Nf4Parts upload(const ModelSpec& spec, const GroupShape& group, const LayerWeights& from, const float* usual_map, const Stream& stream) {
    DeviceArena counter;
    take(counter, spec, group, from, usual_map);
    if (memory_.bytes() < counter.used()) {
      memory_ = DeviceMemory();
      memory_ = DeviceMemory(counter.used());
    }
    DeviceArena arena(memory_.data(), memory_.bytes());
    Nf4Parts parts = take(arena, spec, group, from, usual_map);
    for (std::size_t i = 0; i < group.parts.size(); ++i) upload_nf4(from[group.parts[i].projection].weight, parts[i], usual_map, stream);
    return parts;
  }

 private:
  static Nf4Parts take(DeviceArena& arena, const ModelSpec& spec, const GroupShape& group, const LayerWeights& from, const float* usual_map) {
    Nf4Parts parts;
    for (std::size_t i = 0; i < group.parts.size(); ++i) {
      const Projection projection = group.parts[i].projection;
      parts[i] = take_nf4(arena, spec, projection, format_of(from[projection].weight), usual_map);
    }
    return parts;
  }

  DeviceMemory memory_;
};

// Values [first, first + count) of a float tensor as bf16.
void convert(const Matrix& from, std::int64_t first, std::int64_t count, bf16* to) {
  const auto* bytes = static_cast<const std::byte*>(from.data) + first * dtype_size(from.dtype);
  if (from.dtype == Dtype::bf16) {
    std::memcpy(to, bytes, static_cast<std::size_t>(count) * sizeof(bf16));
    return;
  }
  std::vector<float> wide(static_cast<std::size_t>(count));
  to_f32(from.dtype, bytes, count, wide.data());
  from_f32(Dtype::bf16, wide.data(), count, to);
}

// A dense weight into rows of S, tail columns zero.
void upload_rows(const Matrix& from, bf16* to, std::int64_t stride, const Stream& stream) {
  const std::int64_t piece = std::max<std::int64_t>(1, kPieceElements / stride);
  for (std::int64_t first = 0; first < from.rows; first += piece) {
    const std::int64_t count = std::min(piece, from.rows - first);
    std::vector<bf16> rows(static_cast<std::size_t>(count * stride), bf16{0});
    for (std::int64_t r = 0; r < count; ++r) convert(from, (first + r) * from.cols, from.cols, rows.data() + r * stride);
    copy_to_device(to + first * stride, rows.data(), count * stride * static_cast<std::int64_t>(sizeof(bf16)), stream);
    stream.synchronize();
  }
}

void upload_vector(const float* from, const float* to, std::int64_t n, const Stream& stream) {
  if (to != nullptr) copy_to_device(writable(to), from, n * 4, stream);
}

}  // namespace

WeightFormat format_of(const Matrix& weight) {
  WeightFormat format{weight.dtype == Dtype::nf4, weight.nf4.absmax == nullptr, false};
  if (format.nf4 && format.double_quant) format.own_map = !std::equal(kDynamicSigned.begin(), kDynamicSigned.end(), weight.nf4.nested_map);
  return format;
}

BaseFormat base_format(const DecoderWeights& weights) {
  BaseFormat format;
  for (const LayerWeights& layer : weights.layers) {
    auto& of = format.emplace_back();
    for (int p = 0; p < kProjections; ++p) of[static_cast<std::size_t>(p)] = format_of(layer[projection_at(p)].weight);
  }
  return format;
}

BaseFormat nf4_format(const ModelSpec& spec) { return BaseFormat(static_cast<std::size_t>(spec.layers)); }

Nf4Parts stored_parts(const DeviceLayer& layer, const GroupShape& group) {
  Nf4Parts parts;
  for (std::size_t p = 0; p < group.parts.size(); ++p) parts[p] = layer.nf4[static_cast<std::size_t>(group.parts[p].projection)];
  return parts;
}

DeviceWeights DeviceWeights::take(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, Nf4Layout layout) {
  DeviceWeights weights;
  weights.map = arena.take<float>(256);
  for (std::int64_t l = 0; l < spec.layers; ++l) {
    const auto& of = format[static_cast<std::size_t>(l)];
    DeviceLayer& layer = weights.layers.emplace_back();
    layer.input_norm = arena.take<float>(spec.hidden);
    layer.mlp_norm = arena.take<float>(spec.hidden);
    if (spec.sandwich_norms) {
      layer.attention_norm = arena.take<float>(spec.hidden);
      layer.mlp_output_norm = arena.take<float>(spec.hidden);
    }
    if (spec.qk_norm) {
      layer.q_norm = arena.take<float>(spec.head_dim);
      layer.k_norm = arena.take<float>(spec.head_dim);
    }
    for (int g = 0; g < kGroups; ++g) {
      const GroupShape& group = geometry.groups[static_cast<std::size_t>(g)];
      if (spec.has_bias(group.parts.front().projection)) {
        if (static_cast<Group>(g) == Group::qkv)
          layer.qkv_bias = arena.take<float>(group.outputs);
        else
          layer.bias[static_cast<std::size_t>(g)] = arena.take<bf16>(group.outputs);
      }
      const bool nf4 = is_nf4(of, group), packs = nf4 && layout == Nf4Layout::packed && nf4_packs(group.inputs);
      std::vector<std::int64_t> part_rows;
      for (const GroupPart& part : group.parts) {
        const auto p = static_cast<std::size_t>(part.projection);
        require(Code::unsupported, of[p].nf4 == nf4, "on a GPU the projections of one product must all be NF4 or none; layer ", l, "'s ",
                projection_name(part.projection), " is not as ", projection_name(group.parts.front().projection), " is");
        if (nf4 && !packs) layer.nf4[p] = take_nf4(arena, spec, part.projection, of[p], weights.map);
        part_rows.push_back(part.outputs);
      }
      if (packs) layer.packed[static_cast<std::size_t>(g)] = take_packed(arena, part_rows, group.inputs, static_cast<Group>(g) == Group::gate_up);
      if (!nf4) layer.stored[static_cast<std::size_t>(g)] = arena.take<bf16>(group.elements());
    }
  }
  weights.final_norm = arena.take<float>(spec.hidden);
  weights.head = arena.take<bf16>(spec.vocab * spec.hidden);
  return weights;
}

void upload_weights(DeviceWeights& to, const ModelSpec& spec, const Geometry& geometry, const DecoderWeights& from, const Stream& stream, const SeeStored& see) {
  copy_to_device(to.map, kDynamicSigned.data(), 256 * 4, stream);
  PackingRoom room;
  for (std::size_t l = 0; l < to.layers.size(); ++l) {
    DeviceLayer& layer = to.layers[l];
    const LayerWeights& source = from.layers[l];
    upload_vector(source.input_norm, layer.input_norm, spec.hidden, stream);
    upload_vector(source.mlp_norm, layer.mlp_norm, spec.hidden, stream);
    upload_vector(source.attention_norm, layer.attention_norm, spec.hidden, stream);
    upload_vector(source.mlp_output_norm, layer.mlp_output_norm, spec.hidden, stream);
    upload_vector(source.q_norm, layer.q_norm, spec.head_dim, stream);
    upload_vector(source.k_norm, layer.k_norm, spec.head_dim, stream);
    for (std::size_t g = 0; g < kGroups; ++g) {
      const GroupShape& group = geometry.groups[g];
      const bool packs = layer.packed[g].codes != nullptr, nf4 = layer.stored[g] == nullptr;
      if (packs) {
        const Nf4Parts parts = room.upload(spec, group, source, to.map, stream);
        if (see) see(static_cast<std::int64_t>(l), static_cast<Group>(g), parts);
        nf4_pack(parts, layer.packed[g], stream);
        stream.synchronize();  // the room is free again
      }
      for (const GroupPart& part : group.parts) {
        const LinearWeights& linear = source[part.projection];
        const auto p = static_cast<std::size_t>(part.projection);
        if (layer.stored[g] != nullptr)
          upload_rows(linear.weight, layer.stored[g] + part.first_output * group.stride(), group.stride(), stream);
        else if (!packs)
          upload_nf4(linear.weight, layer.nf4[p], to.map, stream);
        if (linear.bias == nullptr) continue;
        if (layer.qkv_bias != nullptr && static_cast<Group>(g) == Group::qkv) {
          upload_vector(linear.bias, layer.qkv_bias + part.first_output, part.outputs, stream);
        } else {
          std::vector<bf16> rounded(static_cast<std::size_t>(part.outputs));
          from_f32(Dtype::bf16, linear.bias, part.outputs, rounded.data());
          copy_to_device(writable(layer.bias[g] + part.first_output), rounded.data(), part.outputs * 2, stream);
          stream.synchronize();
        }
      }
      if (see && nf4 && !packs) see(static_cast<std::int64_t>(l), static_cast<Group>(g), stored_parts(layer, group));
    }
  }
  upload_vector(from.final_norm, to.final_norm, spec.hidden, stream);
  upload_table(from.head, to.head, false, stream);
  stream.synchronize();
}

void upload_table(const Matrix& table, bf16* to, bool to_pinned, const Stream& stream) {
  const std::int64_t n = table.rows * table.cols;
  std::vector<bf16> piece;
  for (std::int64_t first = 0; first < n; first += kPieceElements) {
    const std::int64_t count = std::min(kPieceElements, n - first);
    if (to_pinned) {
      convert(table, first, count, to + first);
      continue;
    }
    piece.resize(static_cast<std::size_t>(count));
    convert(table, first, count, piece.data());
    copy_to_device(to + first, piece.data(), count * static_cast<std::int64_t>(sizeof(bf16)), stream);
    stream.synchronize();
  }
}

}  // namespace engine::cuda
