// device_weights.h: a frozen base in device memory.
//   Block linears stay as they are stored: NF4 (decoded when used) or 16/32-bit, rounded to bf16 and laid out as the matrix S of their group. For generation
//   NF4 groups are packed (ops/nf4_pack.h) where their columns allow it. Norms and the biases of q, k, v are fp32; other biases, the embedding table and the
//   head are bf16.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/bf16.h"
#include "cuda/model/geometry.h"
#include "cuda/ops/nf4_pack.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "model/weights.h"

namespace engine::cuda {

// How a projection is held. The usual map of 8-bit scales is held once for the whole model.
struct WeightFormat {
  bool nf4 = true;
  bool double_quant = true;
  bool own_map = false;  // its scales' map is not the usual one
};
WeightFormat format_of(const Matrix& weight);
// Of every projection of every layer, as loaded, or as a doubly quantized base of this shape would be.
using BaseFormat = std::vector<std::array<WeightFormat, kProjections>>;
BaseFormat base_format(const DecoderWeights& weights);
BaseFormat nf4_format(const ModelSpec& spec);

enum class Nf4Layout : std::uint8_t { stored, packed };

struct DeviceLayer {
  const float *input_norm = nullptr, *attention_norm = nullptr, *mlp_norm = nullptr, *mlp_output_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  const float* qkv_bias = nullptr;                    // [q + k + v], or null
  std::array<const bf16*, kGroups> bias{};            // [outputs] of o, gate_up and down, or null
  std::array<Matrix, kProjections> nf4{};             // pointers into device memory; data null where not NF4, or packed
  std::array<PackedNf4, kGroups> packed{};            // codes null where not packed
  std::array<bf16*, kGroups> stored{};                // S [rows, stride] of a group that is not NF4, else null
};

// The parts of an NF4 group that is not packed.
Nf4Parts stored_parts(const DeviceLayer& layer, const GroupShape& group);

// Takes room for everything but the embedding from `arena` (null pointers while it counts). The embedding's place is the plan's to choose; a tied head is
// the embedding and always here.
struct DeviceWeights {
  std::vector<DeviceLayer> layers;
  const float* final_norm = nullptr;
  bf16* head = nullptr;  // [vocab, hidden]
  float* map = nullptr;  // [256], the usual map of 8-bit scales

  static DeviceWeights take(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, Nf4Layout layout = Nf4Layout::stored);
};

// The parts of an NF4 group as stored, in device memory; of one that will be packed, until what is now given to the stream has run.
using SeeStored = std::function<void(std::int64_t layer, Group group, const Nf4Parts& parts)>;

// Copies a loaded base to where `take` made room. Waits for the copies. Groups that are packed need memory of their own meanwhile, one group's at a time.
// `see`, if there is one, is called for each NF4 group, and gives its work to the same stream.
void upload_weights(DeviceWeights& to, const ModelSpec& spec, const Geometry& geometry, const DecoderWeights& from, const Stream& stream, const SeeStored& see = {});
// A table [rows, cols] of any float type as bf16, in device or pinned memory.
void upload_table(const Matrix& table, bf16* to, bool to_pinned, const Stream& stream);

}  // namespace engine::cuda
