// attention_blocks.h: the geometry of tiled attention: which blocks there are, and packed operands.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "ops/attention.h"
#include "ops/gemm_kernel.h"

namespace engine {

inline constexpr std::int64_t kKeyBlock = 128;  // a multiple of every kernel's columns and depth step

// Rows of queries taken together: about 56, in whole tiles.
inline std::int64_t query_block(const GemmKernel& kernel) { return std::max<std::int64_t>(1, (63 / kernel.rows)) * kernel.rows; }

// Hands out aligned pieces of one allocation. Built with no memory it only adds up sizes.
class Pieces {
 public:
  explicit Pieces(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  std::size_t bytes() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

// One block of one head of one sequence. Positions count from the sequence's start.
struct Block {
  std::int64_t begin, length;  // the sequence's first token, and how many it has
  std::int64_t head;
  std::int64_t first, rows;    // the block's tokens
  std::int64_t key_slot;       // where the sequence's packed key blocks of this head's keys begin
};

// Blocks of `size` tokens of every sequence and of `heads` heads, `group` of which share packed keys. The longest work comes first:
// late queries see many keys, early keys are seen by many queries.
inline std::vector<Block> make_blocks(std::span<const std::int64_t> offsets, std::int64_t heads, std::int64_t group, std::int64_t size, bool late_first) {
  std::vector<Block> blocks;
  std::int64_t slot = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::int64_t begin = offsets[i], length = offsets[i + 1] - begin;
    const std::int64_t count = (length + size - 1) / size, key_blocks = (length + kKeyBlock - 1) / kKeyBlock;
    for (std::int64_t n = 0; n < count; ++n) {
      const std::int64_t first = (late_first ? count - 1 - n : n) * size;
      for (std::int64_t h = 0; h < heads; ++h)
        blocks.push_back({begin, length, h, first, std::min(size, length - first), slot + h / group * key_blocks});
    }
    slot += heads / group * key_blocks;
  }
  return blocks;
}

// Packing and multiplying small matrices with a kernel.
class Tiles {
 public:
  Tiles(const GemmKernel& kernel, Compute compute) : kernel_(kernel), round_(compute == Compute::bf16) {}

  std::int64_t left_bytes(std::int64_t rows, std::int64_t depth) const { return ceil(rows, kernel_.rows) * left_panel(depth); }
  std::int64_t right_bytes(std::int64_t cols, std::int64_t depth) const { return ceil(cols, kernel_.cols) * right_panel(depth); }

  // out ← source(i, d) = source[i * stride + d * depth_stride]
  void pack_left(const float* source, std::int64_t stride, std::int64_t depth_stride, std::int64_t rows, std::int64_t depth, std::byte* out) const {
    for (std::int64_t i = 0; i < rows; i += kernel_.rows, out += left_panel(depth))
      kernel_.pack_a(source + i * stride, stride, depth_stride, static_cast<int>(std::min<std::int64_t>(kernel_.rows, rows - i)), depth, round_, out);
  }
  void pack_right(const float* source, std::int64_t stride, std::int64_t depth_stride, std::int64_t cols, std::int64_t depth, std::byte* out) const {
    for (std::int64_t i = 0; i < cols; i += kernel_.cols, out += right_panel(depth))
      kernel_.pack_b(source + i * stride, stride, depth_stride, static_cast<int>(std::min<std::int64_t>(kernel_.cols, cols - i)), depth, round_, out);
  }

  // c[rows, cols] (+)= alpha · left · rightᵀ over `depth`. right was packed with right_depth >= depth, of which the front is used.
  void multiply(const std::byte* left, std::int64_t rows, const std::byte* right, std::int64_t cols, std::int64_t depth, std::int64_t right_depth,
                float alpha, float* c, std::int64_t stride, bool accumulate) const {
    for (std::int64_t col = 0; col < cols; col += kernel_.cols, right += right_panel(right_depth))
      kernel_.tiles({.depth = kernel_.padded(depth),
                     .a = left,
                     .a_stride = left_panel(depth),
                     .b = right,
                     .c = c + col,
                     .stride = stride,
                     .rows = rows,
                     .cols = static_cast<int>(std::min<std::int64_t>(kernel_.cols, cols - col)),
                     .alpha = alpha,
                     .bias = nullptr,
                     .accumulate = accumulate,
                     .prefetch = false});
  }

 private:
  static std::int64_t ceil(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
  std::int64_t left_panel(std::int64_t depth) const { return kernel_.padded(depth) * kernel_.a_width * kernel_.element_bytes; }
  std::int64_t right_panel(std::int64_t depth) const { return kernel_.padded(depth) * kernel_.cols * kernel_.element_bytes; }

  const GemmKernel& kernel_;
  bool round_;
};

// Keys or values of one head of every sequence, packed block by block as right operands.
//   by_token: columns are tokens, the depth is head_dim (for q·kᵀ).     by_dim: columns are head_dim, the depth is tokens (for p·v).
enum class PackedAs : std::uint8_t { by_token, by_dim };

class PackedBlocks {
 public:
  PackedBlocks(const Tiles& tiles, const AttentionShape& shape, PackedAs as, std::int64_t slots, Pieces& pieces)
      : tiles_(tiles), d_(shape.head_dim), as_(as),
        slot_bytes_(as == PackedAs::by_token ? tiles.right_bytes(kKeyBlock, d_) : tiles.right_bytes(d_, kKeyBlock)),
        memory_(pieces.take<std::byte>(slots * slot_bytes_)) {}

  void pack(const Block& block, std::int64_t slot, ConstRows x) const {
    const float* source = x.row(block.begin + block.first) + block.head * d_;
    if (as_ == PackedAs::by_token)
      tiles_.pack_right(source, x.stride, 1, block.rows, d_, memory_ + slot * slot_bytes_);
    else
      tiles_.pack_right(source, 1, x.stride, d_, block.rows, memory_ + slot * slot_bytes_);
  }
  const std::byte* block(std::int64_t slot) const { return memory_ + slot * slot_bytes_; }

 private:
  const Tiles& tiles_;
  std::int64_t d_;
  PackedAs as_;
  std::int64_t slot_bytes_;
  std::byte* memory_;
};

}  // namespace engine
