// dtype.h: the element types tensors are stored in.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace engine {

// `nf4` is packed: two codes per byte, scales apart (ops/nf4.h). It is a weight's type in memory, never a safetensors dtype.
enum class Dtype : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, f8_e4m3, f8_e5m2, nf4 };

// Bytes of one element; 0 for nf4, whose elements are half a byte.
std::int64_t dtype_size(Dtype dtype) noexcept;

// Short name used in this project: "f32", "bf16", "nf4", …
std::string_view dtype_name(Dtype dtype) noexcept;

// Name in a safetensors header: "F32", "BF16", …; empty for nf4.
std::string_view safetensors_name(Dtype dtype) noexcept;
std::optional<Dtype> dtype_from_safetensors(std::string_view name) noexcept;

// Name in config.json's torch_dtype / dtype: "float32", "bfloat16", "float16"; empty for others.
std::string_view torch_name(Dtype dtype) noexcept;

inline bool is_float_weight(Dtype dtype) noexcept {
  return dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16;
}

// dst[i] = src[i] for n elements of any f32, f16 or bf16 type; narrowing rounds to nearest even. Buffers must not overlap.
void to_f32(Dtype from, const void* src, std::int64_t n, float* dst);
void from_f32(Dtype to, const float* src, std::int64_t n, void* dst);

}  // namespace engine
