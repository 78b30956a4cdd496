// batch.h: one micro-batch of packed rows and the positions of it that are trained on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/pass.h"

namespace engine {

// Borrowed from the caller for the length of a step.
struct MicroBatch {
  std::span<const std::uint32_t> input_ids;    // [T]
  std::span<const std::uint8_t> loss_mask;     // [T], 0 or 1: whether the token is to be predicted
  std::span<const std::uint32_t> row_offsets;  // [rows + 1]; positions restart at each row
};

// A checked micro-batch. Position i is labelled input_ids[i + 1] when that token is in the same row and its mask is set.
struct LabelledBatch {
  std::span<const std::uint32_t> ids;     // [T], borrowed
  std::vector<std::int64_t> offsets;      // [rows + 1]
  std::vector<std::int64_t> positions;    // [n], ascending: the labelled ones
  std::vector<std::uint32_t> targets;     // [n]

  PackedTokens packed() const { return {ids, offsets}; }
  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t labels() const noexcept { return static_cast<std::int64_t>(targets.size()); }
};

// Throws invalid: lengths that disagree, offsets that do not rise from 0 to T, ids outside the vocabulary, a mask other than 0 or 1.
LabelledBatch label_batch(const ModelSpec& spec, const MicroBatch& micro);

}  // namespace engine
