// gguf.h: the vocabulary of GGUF version 3, as ggml defines it: tensor types, metadata values, and the file's layout.
//   "GGUF" | u32 version 3 | u64 tensors | u64 metadata entries | entries | tensor infos | padding | data
//     string       u64 length | UTF-8 bytes
//     entry        string key | u32 value type | value                 array value: u32 item type | u64 count | items
//     tensor info  string name | u32 dimensions | u64 extent of each, innermost first | u32 type | u64 offset into the data
//   Everything is little-endian. The data section and each tensor in it begin at a multiple of general.alignment (32 when absent).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace engine {

inline constexpr std::uint32_t kGgufMagic = 0x46554747;  // "GGUF" read as a little-endian u32
inline constexpr std::uint32_t kGgufVersion = 3;
inline constexpr std::int64_t kGgufAlignment = 32;

// How a tensor's values are stored; the numbers are ggml's. gguf_blocks.h has the bytes of each.
enum class GgmlType : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q5_0 = 6, q8_0 = 8, q4_k = 12, q6_k = 14, bf16 = 30 };

struct GgmlLayout {
  std::int64_t values;  // in a block; a row is a whole number of blocks
  std::int64_t bytes;   // of a block
};
GgmlLayout ggml_layout(GgmlType type) noexcept;
std::string_view ggml_name(GgmlType type) noexcept;  // "q4_k"
std::optional<GgmlType> ggml_type_from_number(std::uint32_t number) noexcept;

// A metadata value. The reader widens 8- and 16-bit integers to 32 bits, in arrays too.
using GgufValue = std::variant<std::uint32_t, std::int32_t, std::uint64_t, std::int64_t, float, double, bool, std::string, std::vector<std::int32_t>,
                               std::vector<float>, std::vector<std::string>>;

// Keys in the order they are written.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

// GGUF's numbers of the value types.
enum class GgufType : std::uint32_t {
  u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, boolean = 7, string = 8, array = 9, u64 = 10, i64 = 11, f64 = 12
};

}  // namespace engine
