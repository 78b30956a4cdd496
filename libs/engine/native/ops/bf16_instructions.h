// bf16_instructions.h: the AVX512-BF16 and AMX instructions that the matrix kernels use: five conversions and products, and the tile registers.
//   Compiled for the hardware they are the intrinsics and nothing else. With ENGINE_SOFTWARE_BF16 they are the definitions that the processor's
//   manual gives, so that the same packing and kernel code runs, and is tested, where the hardware is absent (gemm_software_avx512vbmi.cpp).
//   All of them take subnormal operands for zeros, flush subnormal results, round to nearest even and ignore MXCSR.
//   Needs AVX-512 F and BW in either form.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace engine {
namespace {

#ifndef ENGINE_SOFTWARE_BF16

// 32 bf16: low's 16 values, then high's.
inline __m512i bf16_of(__m512 high, __m512 low) {
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  __m512i bits;
  __builtin_memcpy(&bits, &both, sizeof bits);
  return bits;
}
inline __m256i bf16_of(__m512 x) {
  const __m256bh half = _mm512_cvtneps_pbh(x);
  __m256i bits;
  __builtin_memcpy(&bits, &half, sizeof bits);
  return bits;
}
// Lane i: sum + a[2i + 1] · b[2i + 1], then + a[2i] · b[2i], two fused multiply-adds.
inline __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
  __m512bh x, y;
  __builtin_memcpy(&x, &a, sizeof x);
  __builtin_memcpy(&y, &b, sizeof y);
  return _mm512_dpbf16_ps(sum, x, y);
}

// Tile registers are named by literal numbers: they are part of the instruction.
#define ENGINE_TILE_CONFIGURE(config) _tile_loadconfig(config)
#define ENGINE_TILE_RELEASE() _tile_release()
#define ENGINE_TILE_ZERO(tile) _tile_zero(tile)
#define ENGINE_TILE_LOAD(tile, from, row_bytes) _tile_loadd(tile, from, row_bytes)
#define ENGINE_TILE_STORE(tile, to, row_bytes) _tile_stored(tile, to, row_bytes)
#define ENGINE_TILE_DOT(sums, a, b) _tile_dpbf16ps(sums, a, b)

#else

inline float flushed(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
inline float fused(float a, float b, float c) { return flushed(__builtin_fmaf(flushed(a), flushed(b), flushed(c))); }
inline float float_of_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
inline std::uint16_t bf16_of(float value) {
  value = flushed(value);
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline __m256i bf16_of(__m512 x) {
  float values[16];
  std::uint16_t halves[16];
  _mm512_storeu_ps(values, x);
  for (int i = 0; i < 16; ++i) halves[i] = bf16_of(values[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
}
inline __m512i bf16_of(__m512 high, __m512 low) { return _mm512_inserti64x4(_mm512_castsi256_si512(bf16_of(low)), bf16_of(high), 1); }
inline __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
  float sums[16];
  std::uint16_t x[32], y[32];
  _mm512_storeu_ps(sums, sum);
  _mm512_storeu_si512(x, a);
  _mm512_storeu_si512(y, b);
  for (int i = 0; i < 16; ++i) {
    sums[i] = fused(float_of_bf16(x[2 * i + 1]), float_of_bf16(y[2 * i + 1]), sums[i]);
    sums[i] = fused(float_of_bf16(x[2 * i]), float_of_bf16(y[2 * i]), sums[i]);
  }
  return _mm512_loadu_ps(sums);
}

// One thread's tile registers. Without a configuration the instructions would trap; here they do.
struct TileRegisters {
  bool configured = false;
  int rows[8] = {}, row_bytes[8] = {};
  std::uint8_t data[8][16][64] = {};

  void configure(const void* memory) {
    const auto* config = static_cast<const std::uint8_t*>(memory);
    if (config[0] != 1) __builtin_trap();  // the palette
    configured = true;
    for (int t = 0; t < 8; ++t) {
      row_bytes[t] = config[16 + 2 * t] | config[17 + 2 * t] << 8;
      rows[t] = config[48 + t];
      if (rows[t] > 16 || row_bytes[t] > 64) __builtin_trap();
    }
    __builtin_memset(data, 0, sizeof data);
  }
  void check(int t) const {
    if (!configured || rows[t] == 0 || row_bytes[t] == 0) __builtin_trap();
  }
  void zero(int t) {
    check(t);
    __builtin_memset(data[t], 0, sizeof data[t]);
  }
  void load(int t, const void* from, std::int64_t stride) {
    zero(t);
    for (int r = 0; r < rows[t]; ++r) __builtin_memcpy(data[t][r], static_cast<const std::uint8_t*>(from) + r * stride, static_cast<std::size_t>(row_bytes[t]));
  }
  void store(int t, void* to, std::int64_t stride) const {
    check(t);
    for (int r = 0; r < rows[t]; ++r) __builtin_memcpy(static_cast<std::uint8_t*>(to) + r * stride, data[t][r], static_cast<std::size_t>(row_bytes[t]));
  }
  // tdpbf16ps: for every row and column the even and the odd products of this step are summed apart, then together, then into the tile.
  void dot(int sums, int a, int b) {
    check(sums), check(a), check(b);
    if (rows[sums] != rows[a] || row_bytes[sums] != row_bytes[b] || row_bytes[a] != 4 * rows[b]) __builtin_trap();
    for (int m = 0; m < rows[sums]; ++m)
      for (int n = 0; n < row_bytes[sums] / 4; ++n) {
        float even = 0, odd = 0, total;
        for (int k = 0; k < row_bytes[a] / 4; ++k) {
          std::uint16_t x[2], y[2];
          __builtin_memcpy(x, &data[a][m][4 * k], 4);
          __builtin_memcpy(y, &data[b][k][4 * n], 4);
          even = fused(float_of_bf16(x[0]), float_of_bf16(y[0]), even);
          odd = fused(float_of_bf16(x[1]), float_of_bf16(y[1]), odd);
        }
        __builtin_memcpy(&total, &data[sums][m][4 * n], 4);
        total = flushed(flushed(total) + flushed(even + odd));
        __builtin_memcpy(&data[sums][m][4 * n], &total, 4);
      }
  }
};
inline thread_local TileRegisters tile_registers;

#define ENGINE_TILE_CONFIGURE(config) tile_registers.configure(config)
#define ENGINE_TILE_RELEASE() (tile_registers.configured = false)
#define ENGINE_TILE_ZERO(tile) tile_registers.zero(tile)
#define ENGINE_TILE_LOAD(tile, from, row_bytes) tile_registers.load(tile, from, row_bytes)
#define ENGINE_TILE_STORE(tile, to, row_bytes) tile_registers.store(tile, to, row_bytes)
#define ENGINE_TILE_DOT(sums, a, b) tile_registers.dot(sums, a, b)

#endif

}  // namespace
}  // namespace engine
