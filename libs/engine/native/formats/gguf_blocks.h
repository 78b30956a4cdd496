// gguf_blocks.h: the blocks ggml stores weights in. d, m: f16; q: code; every formula in fp32.
//   q4_0  32 values, 18 B   w = d·(q − 8)          d | 16 bytes: codes of values i (low) and i + 16 (high nibble)
//   q5_0  32 values, 22 B   w = d·(q − 16)         d | u32 with the fifth bits | 16 bytes as q4_0
//   q8_0  32 values, 34 B   w = d·q                d | 32 signed bytes
//   q4_k  256 values, 144 B w = d·s·q − m·t        d | m | 12 bytes: eight 6-bit scales s and minima t, one pair per 32 values | 128 bytes of nibbles
//   q6_k  256 values, 210 B w = d·s·(q − 32)       128 bytes of low nibbles | 64 bytes of high bit pairs | sixteen i8 scales, one per 16 values | d
//   Blocks are what ggml's reference quantizers (quantize_row_…_ref) make, byte for byte. q4_k and q6_k search the scale of least weighted square error.
#pragma once

#include <cstdint>

#include "core/exec.h"
#include "formats/gguf.h"

namespace engine {

// values fp32 [n] → blocks; n is a multiple of the type's block. Throws corrupt for a value that is not finite, unsupported for one too large for
// the type's f16 parts (|w| above 65504 as f16; about 65504 times the largest code for the others).
void ggml_quantize(const Exec& ex, GgmlType type, const float* values, std::int64_t n, std::uint8_t* blocks);

// The inverse, as every reader of the format computes it.
void ggml_dequantize(const Exec& ex, GgmlType type, const std::uint8_t* blocks, std::int64_t n, float* values);

// One super-block of 256 values (gguf_k_blocks.cpp).
void quantize_q4_k_block(const float* values, std::uint8_t* block);
void quantize_q6_k_block(const float* values, std::uint8_t* block);
void dequantize_q4_k_block(const std::uint8_t* block, float* values);
void dequantize_q6_k_block(const std::uint8_t* block, float* values);

}  // namespace engine
