#include "cuda/model/decomposition.h"

#include "cuda/ops/dora.h"

namespace engine::cuda {
namespace {

// f(layer, group, part of it, its places) for every adapted projection.
template <class F>
void for_each_pair(const Geometry& geometry, const LoraAdapter& adapter, const F& f) {
  for (std::size_t layer = 0; layer < geometry.adapted.size(); ++layer)
    for (std::size_t g = 0; g < kGroups; ++g)
      for (const GroupPart& part : geometry.groups[g].parts)
        if (const LoraPair* at = adapter.pair(static_cast<std::int64_t>(layer), part.projection)) f(layer, g, part, *at);
}

}  // namespace

void follow_norms(const Geometry& geometry, const DeviceWeights& weights, const LoraAdapter& adapter, const float* values, float* inverse_norms, cudaStream_t stream) {
  if (!geometry.dora) return;
  for_each_pair(geometry, adapter, [&](std::size_t layer, std::size_t g, const GroupPart& part, const LoraPair& at) {
    const DeviceLayer& w = weights.layers[layer];
    const DoraMatrices matrices{values + at.a, values + at.b, at.rank, at.scale};
    const GroupShape& group = geometry.groups[g];
    if (w.stored[g] == nullptr)
      dora_inverse_norms(w.nf4[static_cast<std::size_t>(part.projection)], matrices, inverse_norms + at.norm, stream);
    else
      dora_inverse_norms(View<const bf16>(w.stored[g] + part.first_output * group.stride(), part.outputs, group.inputs, group.stride()), matrices, inverse_norms + at.norm,
                         stream);
  });
}

void begin_magnitudes(const Geometry& geometry, const LoraAdapter& adapter, float* values, const float* inverse_norms, cudaStream_t stream) {
  if (!geometry.dora) return;
  for_each_pair(geometry, adapter, [&](std::size_t, std::size_t, const GroupPart&, const LoraPair& at) {
    dora_magnitudes(inverse_norms + at.norm, at.outputs, values + at.magnitude, stream);
  });
}

}  // namespace engine::cuda
