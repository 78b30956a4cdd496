// nf4_decode.h: what kernels that read NF4 weights share.
#pragma once

#include <cstdint>

#include "cuda/runtime/ptx.h"
#include "ops/matrix.h"

namespace engine::cuda {

// The weight as a kernel's argument; absmax or the nested fields are null, as in Nf4Scales.
struct DeviceNf4 {
  const std::uint8_t* codes;
  const float* absmax;
  const std::uint8_t* scale_codes;
  const float* nested_map;
  const float* nested_absmax;
  float offset;
};
DeviceNf4 device_nf4(const Matrix& weight);  // throws invalid for another type

struct NfBook {
  float value[16];
};
NfBook nf4_book();

// Where value i of eight begins in the little-endian word that holds them: the first of a byte is its high half.
ENGINE_DEVICE constexpr int nf4_shift(int i) { return i / 2 * 8 + (i % 2 == 0 ? 4 : 0); }

ENGINE_DEVICE float nf4_scale(const DeviceNf4& weight, std::int64_t block) {
  if (weight.absmax != nullptr) return weight.absmax[block];
  return weight.nested_map[weight.scale_codes[block]] * weight.nested_absmax[block / 256] + weight.offset;
}

}  // namespace engine::cuda
