// rope_cache.h: the rotary tables a pass needs, kept between passes and grown when a position lies beyond them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/rope.h"

namespace engine {

// One set of rotations for the rows of a pass. Borrows from the cache, until its next prepare().
struct Rotation {
  const RopeTable* table = nullptr;
  const std::int32_t* positions = nullptr;  // [T], rows of the table
};

class RopeCache {
 public:
  explicit RopeCache(std::vector<RopeParameters> ropes);

  // positions [T]; lengths [T]: of the sequence each token belongs to, as far as it is known when its rotation is chosen. Only dynamic scaling looks
  // at lengths: a prompt rotates by the prompt's length, a generated token by its own position + 1, as transformers does with a cache.
  // Both must live until the pass ends.
  void prepare(std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths);
  Rotation at(int rope) const;

 private:
  struct Entry {
    RopeParameters parameters;
    RopeTable table;      // positions 0 … count − 1 at the unscaled length
    RopeTable per_row;    // dynamic scaling beyond the original context: one row for each token
    bool use_per_row = false;
  };
  static void rotate_each_row(Entry& entry, std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths);

  std::vector<Entry> entries_;
  std::vector<std::int32_t> row_numbers_;
  const std::int32_t* positions_ = nullptr;
};

}  // namespace engine
