#include "formats/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"

namespace engine {
namespace {

constexpr int kBlock = 32;

struct Named {
  GgmlType type;
  std::string_view name;
  GgmlLayout layout;
};
constexpr std::array kTypes = {Named{GgmlType::f32, "f32", {1, 4}},        Named{GgmlType::f16, "f16", {1, 2}},       Named{GgmlType::bf16, "bf16", {1, 2}},
                               Named{GgmlType::q4_0, "q4_0", {32, 18}},    Named{GgmlType::q5_0, "q5_0", {32, 22}},   Named{GgmlType::q8_0, "q8_0", {32, 34}},
                               Named{GgmlType::q4_k, "q4_k", {256, 144}}, Named{GgmlType::q6_k, "q6_k", {256, 210}}};

const Named& named(GgmlType type) noexcept { return *std::ranges::find(kTypes, type, &Named::type); }

void store_f16(float value, std::uint8_t* at) { from_f32(Dtype::f16, &value, 1, at); }
float load_f16(const std::uint8_t* at) {
  float value = 0;
  to_f32(Dtype::f16, at, 1, &value);
  return value;
}

// 1 / d, or 0 where d is zero or so small that its inverse is not a number to multiply by.
float inverse(float d) {
  const float inverted = 1.0f / d;
  return std::isfinite(inverted) ? inverted : 0.0f;
}

// The value of the largest magnitude, with its sign; the first of equals.
float extreme(const float* x) {
  float most = x[0];
  for (int i = 1; i < kBlock; ++i)
    if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
  return most;
}

// Codes of a symmetric type with `half` steps on the side of the extreme value: the extreme gets code 0.
int code(float scaled, int half) { return std::clamp(static_cast<int>(scaled + (static_cast<float>(half) + 0.5f)), 0, 2 * half - 1); }

void quantize_q4_0(const float* x, std::uint8_t* block) {
  const float d = extreme(x) / -8.0f, id = inverse(d);
  store_f16(d, block);
  for (int i = 0; i < 16; ++i) block[2 + i] = static_cast<std::uint8_t>(code(x[i] * id, 8) | code(x[i + 16] * id, 8) << 4);
}

void quantize_q5_0(const float* x, std::uint8_t* block) {
  const float d = extreme(x) / -16.0f, id = inverse(d);
  store_f16(d, block);
  std::uint32_t fifth = 0;
  for (int i = 0; i < 16; ++i) {
    const int low = code(x[i] * id, 16), high = code(x[i + 16] * id, 16);
    block[6 + i] = static_cast<std::uint8_t>((low & 15) | (high & 15) << 4);
    fifth |= static_cast<std::uint32_t>(low >> 4) << i | static_cast<std::uint32_t>(high >> 4) << (i + 16);
  }
  std::memcpy(block + 2, &fifth, 4);
}

void quantize_q8_0(const float* x, std::uint8_t* block) {
  const float d = std::fabs(extreme(x)) / 127.0f, id = inverse(d);
  store_f16(d, block);
  for (int i = 0; i < kBlock; ++i) block[2 + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::round(x[i] * id)));
}

void dequantize_q4_0(const std::uint8_t* block, float* x) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    x[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
    x[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void dequantize_q5_0(const std::uint8_t* block, float* x) {
  const float d = load_f16(block);
  std::uint32_t fifth = 0;
  std::memcpy(&fifth, block + 2, 4);
  for (int i = 0; i < 16; ++i) {
    x[i] = d * static_cast<float>(((block[6 + i] & 15) | static_cast<int>(fifth >> i & 1) << 4) - 16);
    x[i + 16] = d * static_cast<float>((block[6 + i] >> 4 | static_cast<int>(fifth >> (i + 16) & 1) << 4) - 16);
  }
}

void dequantize_q8_0(const std::uint8_t* block, float* x) {
  const float d = load_f16(block);
  for (int i = 0; i < kBlock; ++i) x[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

using Quantize = void (*)(const float*, std::uint8_t*);
using Dequantize = void (*)(const std::uint8_t*, float*);

Quantize quantizer(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0: return quantize_q4_0;
    case GgmlType::q5_0: return quantize_q5_0;
    case GgmlType::q8_0: return quantize_q8_0;
    case GgmlType::q4_k: return quantize_q4_k_block;
    case GgmlType::q6_k: return quantize_q6_k_block;
    default: return nullptr;
  }
}

Dequantize dequantizer(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0: return dequantize_q4_0;
    case GgmlType::q5_0: return dequantize_q5_0;
    case GgmlType::q8_0: return dequantize_q8_0;
    case GgmlType::q4_k: return dequantize_q4_k_block;
    case GgmlType::q6_k: return dequantize_q6_k_block;
    default: return nullptr;
  }
}

// The type of one value, for the types that are no blocks.
Dtype plain_dtype(GgmlType type) { return type == GgmlType::f32 ? Dtype::f32 : type == GgmlType::f16 ? Dtype::f16 : Dtype::bf16; }

// The largest |w| whose f16 parts are finite.
double limit(GgmlType type) {
  constexpr double kMost = 65504.0;
  switch (type) {
    case GgmlType::f16: return kMost;
    case GgmlType::q4_0: return kMost * 8;
    case GgmlType::q5_0: return kMost * 16;
    case GgmlType::q8_0: return kMost * 127;
    case GgmlType::q4_k:
    case GgmlType::q6_k: return kMost;
    default: return INFINITY;
  }
}

}  // namespace

GgmlLayout ggml_layout(GgmlType type) noexcept { return named(type).layout; }
std::string_view ggml_name(GgmlType type) noexcept { return named(type).name; }

std::optional<GgmlType> ggml_type_from_number(std::uint32_t number) noexcept {
  for (const Named& entry : kTypes)
    if (static_cast<std::uint32_t>(entry.type) == number) return entry.type;
  return std::nullopt;
}

void ggml_quantize(const Exec& ex, GgmlType type, const float* values, std::int64_t n, std::uint8_t* blocks) {
  const GgmlLayout layout = ggml_layout(type);
  require(n % layout.values == 0, "gguf: ", n, " values are no whole number of ", ggml_name(type), " blocks of ", layout.values);
  const double most = limit(type);
  const Quantize quantize = quantizer(type);
  ex.pool.for_ranges(n / layout.values, std::max<std::int64_t>(1, 16384 / layout.values), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * layout.values; i < end * layout.values; ++i) {
      require(Code::corrupt, std::isfinite(values[i]), "holds a weight that is not finite");
      require(Code::unsupported, std::fabs(double{values[i]}) <= most, "holds the weight ", values[i], ", which is too large for ", ggml_name(type));
    }
    if (quantize == nullptr) {
      from_f32(plain_dtype(type), values + begin, end - begin, blocks + begin * layout.bytes);
      return;
    }
    for (std::int64_t b = begin; b < end; ++b) quantize(values + b * layout.values, blocks + b * layout.bytes);
  });
}

void ggml_dequantize(const Exec& ex, GgmlType type, const std::uint8_t* blocks, std::int64_t n, float* values) {
  const GgmlLayout layout = ggml_layout(type);
  require(n % layout.values == 0, "gguf: ", n, " values are no whole number of ", ggml_name(type), " blocks of ", layout.values);
  const Dequantize dequantize = dequantizer(type);
  ex.pool.for_ranges(n / layout.values, std::max<std::int64_t>(1, 16384 / layout.values), [&](std::int64_t begin, std::int64_t end) {
    if (dequantize == nullptr) {
      to_f32(plain_dtype(type), blocks + begin * layout.bytes, end - begin, values + begin);
      return;
    }
    for (std::int64_t b = begin; b < end; ++b) dequantize(blocks + b * layout.bytes, values + b * layout.values);
  });
}

}  // namespace engine
