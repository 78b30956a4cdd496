// nf4_gemv_case.h: packed NF4 weights for tests, with their products by the CPU.
#pragma once

#include "cuda/ops/nf4_pack.h"
#include "cuda/ops/op_test.h"
#include "ops/linear.h"

namespace engine::cuda::test {

using engine::test::make_weight;
using engine::test::OwnedWeight;
using engine::test::WeightKind;

// Some weights of the same K, packed, and x·Wᵀ of all of them by the CPU. Plain scales are such that packing keeps them.
struct Stack {
  std::vector<OwnedWeight> host;
  std::vector<DeviceWeight> device;
  std::int64_t outputs = 0, depth;
  DeviceMemory packed_memory;
  PackedNf4 packed;

  Stack(WeightKind kind, const std::vector<std::int64_t>& rows, std::int64_t k, bool gated = false) : depth(k) {
    for (const std::int64_t n : rows) {
      host.push_back(make_weight(kind, n, k, 3 + host.size()));
      for (float& scale : host.back().absmax) scale = to_float(to_f16(scale));
      device.emplace_back(host.back());
      outputs += n;
    }
    Nf4Parts views{};
    for (std::size_t i = 0; i < device.size(); ++i) views[i] = device[i].view;
    DeviceArena counter;
    take_packed(counter, rows, k, gated);
    packed_memory = DeviceMemory(counter.used());
    DeviceArena arena(packed_memory.data(), packed_memory.bytes());
    packed = take_packed(arena, rows, k, gated);
    nf4_pack(views, packed, stream());
  }

  std::vector<float> product(const std::vector<float>& x, std::int64_t b) const {
    std::vector<float> y(static_cast<std::size_t>(b * outputs));
    std::int64_t first = 0;
    for (const OwnedWeight& w : host) {
      linear(cpu(), rows(x, b, depth), w.view, nullptr, Rows(y.data() + first, b, w.view.rows, outputs));
      first += w.view.rows;
    }
    return y;
  }
};

inline std::vector<float> rounded(std::vector<float> values) {
  for (float& v : values) v = round_to_bf16(v);
  return values;
}

}  // namespace engine::cuda::test
