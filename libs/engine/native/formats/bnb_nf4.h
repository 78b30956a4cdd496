// bnb_nf4.h: how bitsandbytes stores a Linear4bit in safetensors, read and written.   W[out, in], X = its module path
//   X.weight                               u8 [⌈out·in/2⌉, 1]  two codes per byte, the first in the high nibble, W flattened row by row
//   X.weight.absmax                        u8 [blocks] when double-quantized, else f32 [blocks]; blocks = ⌈out·in/64⌉
//   X.weight.quant_map                     f32 [16]            the NF4 code book
//   X.weight.nested_absmax                 f32 [⌈blocks/256⌉]  double quantization only, as the next
//   X.weight.nested_quant_map              f32 [256]
//   X.weight.quant_state.bitsandbytes__nf4 u8 [len]            JSON: quant_type, blocksize, dtype, shape (+ nested_blocksize, nested_dtype, nested_offset)
//   A linear without a quant_state tensor is 16-bit: checkpoints may mix both.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/code_tables.h"
#include "formats/hf_folder.h"

namespace engine {

inline constexpr std::int64_t kNestedBlock = 256;

// The second level:  absmax[i] = map[absmax_code[i]] · absmax[i / 256] + offset
struct NestedScales {
  std::vector<float> absmax;       // [⌈blocks/256⌉]
  std::array<float, 256> map;      // as stored; checkpoints differ in the last bits
  float offset = 0;
};

// One stored NF4 matrix. Borrows the codes and first-level scales from the folder; owns the few second-level values.
struct Nf4Stored {
  std::int64_t rows = 0, cols = 0;       // out, in
  Dtype dtype = Dtype::bf16;             // the type it dequantizes to: bf16, f16 or f32
  const std::uint8_t* codes = nullptr;   // [rows·cols / 2]
  bool double_quant = false;
  const std::uint8_t* absmax_codes = nullptr;  // [blocks], double_quant only
  NestedScales nested;                         // double_quant only
  std::vector<float> absmax;                   // [blocks], single quantization only (copied: small, and aligned)

  std::int64_t blocks() const noexcept { return (rows * cols + kNf4Block - 1) / kNf4Block; }
};

// The NF4 matrix stored under `weight_name` ("….q_proj.weight"), or nullopt when that tensor is absent or not quantized.
// Throws corrupt when parts are missing or do not fit each other, unsupported for fp4, another block size or another code book.
std::optional<Nf4Stored> find_nf4(const HfFolder& folder, std::string_view weight_name);

// True when `name` belongs to some quantized weight of the folder but is not the weight itself ("….weight.absmax").
bool is_nf4_part(const HfFolder& folder, std::string_view name);

// The tensors to announce to a SafetensorsWriter for one matrix, quant_state apart, whose length depends on the offset.
std::string nf4_quant_state(std::int64_t rows, std::int64_t cols, Dtype dtype, std::optional<float> nested_offset);
std::string quant_state_name(std::string_view weight_name);

// quantization_config of config.json, as transformers' BitsAndBytesConfig serialises it. `skipped` (names of linears kept 16-bit) may be empty.
Json nf4_quantization_config(Dtype compute_dtype, bool double_quant, const std::vector<std::string>& skipped);

struct QuantizationConfig {
  bool double_quant = false;
};
// The quantization_config of a config.json: nullopt when absent. Throws unsupported for any method other than bitsandbytes NF4.
std::optional<QuantizationConfig> read_quantization_config(const Json& config);

}  // namespace engine
