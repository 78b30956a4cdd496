#include "core/dtype.h"

#include <array>
#include <cstring>

#include "core/bf16.h"
#include "core/error.h"

namespace engine {
namespace {

struct Row {
  Dtype dtype;
  std::int64_t size;
  std::string_view name, safetensors, torch;
};

constexpr std::array<Row, 16> kRows = {{
    {Dtype::f64, 8, "f64", "F64", "float64"},
    {Dtype::f32, 4, "f32", "F32", "float32"},
    {Dtype::f16, 2, "f16", "F16", "float16"},
    {Dtype::bf16, 2, "bf16", "BF16", "bfloat16"},
    {Dtype::i64, 8, "i64", "I64", ""},
    {Dtype::i32, 4, "i32", "I32", ""},
    {Dtype::i16, 2, "i16", "I16", ""},
    {Dtype::i8, 1, "i8", "I8", ""},
    {Dtype::u64, 8, "u64", "U64", ""},
    {Dtype::u32, 4, "u32", "U32", ""},
    {Dtype::u16, 2, "u16", "U16", ""},
    {Dtype::u8, 1, "u8", "U8", ""},
    {Dtype::boolean, 1, "bool", "BOOL", ""},
    {Dtype::f8_e4m3, 1, "f8_e4m3", "F8_E4M3", ""},
    {Dtype::f8_e5m2, 1, "f8_e5m2", "F8_E5M2", ""},
    {Dtype::nf4, 0, "nf4", "", ""},
}};

const Row& row(Dtype dtype) noexcept { return kRows[static_cast<std::size_t>(dtype)]; }

template <class Half>
void widen(const void* src, std::int64_t n, float* dst) {
  const auto* in = static_cast<const unsigned char*>(src);  // a file's tensor may sit at an odd address
  for (std::int64_t i = 0; i < n; ++i) {
    Half value;
    std::memcpy(&value, in + i * 2, 2);
    dst[i] = to_float(value);
  }
}

}  // namespace

std::int64_t dtype_size(Dtype dtype) noexcept { return row(dtype).size; }
std::string_view dtype_name(Dtype dtype) noexcept { return row(dtype).name; }
std::string_view safetensors_name(Dtype dtype) noexcept { return row(dtype).safetensors; }
std::string_view torch_name(Dtype dtype) noexcept { return row(dtype).torch; }

std::optional<Dtype> dtype_from_safetensors(std::string_view name) noexcept {
  if (name.empty()) return std::nullopt;
  for (const Row& candidate : kRows)
    if (candidate.safetensors == name) return candidate.dtype;
  return std::nullopt;
}

void to_f32(Dtype from, const void* src, std::int64_t n, float* dst) {
  if (n == 0) return;  // memcpy refuses null, even for nothing
  switch (from) {
    case Dtype::f32: std::memcpy(dst, src, static_cast<std::size_t>(n) * 4); return;
    case Dtype::bf16: widen<bf16>(src, n, dst); return;
    case Dtype::f16: widen<f16>(src, n, dst); return;
    default: fail(Code::unsupported, "a weight of type ", dtype_name(from), " cannot be read as f32; use f32, f16 or bf16");
  }
}

void from_f32(Dtype to, const float* src, std::int64_t n, void* dst) {
  if (n == 0) return;  // memcpy refuses null, even for nothing
  auto* out = static_cast<unsigned char*>(dst);
  switch (to) {
    case Dtype::f32: std::memcpy(dst, src, static_cast<std::size_t>(n) * 4); return;
    case Dtype::bf16:
      for (std::int64_t i = 0; i < n; ++i) {
        const bf16 value = to_bf16(src[i]);
        std::memcpy(out + i * 2, &value, 2);
      }
      return;
    case Dtype::f16:
      for (std::int64_t i = 0; i < n; ++i) {
        const f16 value = to_f16(src[i]);
        std::memcpy(out + i * 2, &value, 2);
      }
      return;
    default: fail(Code::unsupported, "a weight cannot be written as ", dtype_name(to), "; use f32, f16 or bf16");
  }
}

}  // namespace engine
