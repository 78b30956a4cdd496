// device_ropes.h: the rotary tables of generation in device memory: positions 0 … context - 1, uploaded as far as they were needed, or with dynamic scaling
//   beyond the original context one row for each token of a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "model/rope_cache.h"
#include "model/spec.h"

namespace engine::cuda {

class DeviceRopes {
 public:
  struct Table {
    const float *cos = nullptr, *sin = nullptr;  // [rows, rotary_dim / 2]
    std::int64_t rotary_dim = 0;
    bool by_row = false;  // row r of a step rotates by row r of the table, not by its position's
  };

  // Throws oom.
  DeviceRopes(const ModelSpec& spec, std::int64_t most_rows);
  static std::int64_t bytes(const ModelSpec& spec, std::int64_t most_rows);

  // Uploads what these tokens need (rope_cache.h says what the two mean) and waits where something was.
  void prepare(std::span<const std::int32_t> positions, std::span<const std::int32_t> lengths, const Stream& stream);
  const Table& at(int rope) const { return tables_[static_cast<std::size_t>(rope)]; }
  bool any_by_row() const noexcept;

 private:
  RopeCache cache_;
  DeviceMemory memory_;
  std::int64_t rows_;
  std::vector<Table> tables_;
  std::vector<std::int64_t> uploaded_;  // rows of the table by position
};

}  // namespace engine::cuda
