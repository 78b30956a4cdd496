// lora_rows_case.h: adapters of different ranks on the device, and what they add by the CPU, for tests.
#pragma once

#include "cuda/ops/lora_rows.h"
#include "cuda/ops/op_test.h"

namespace engine::cuda::test {

// Row r has adapter r % (adapters + 1) - 1: none, or one of them, whose rank in part p is 8 · ((adapter + p) % (ranks / 8 + 1)): some parts have none.
class AdapterCase {
 public:
  AdapterCase(std::int64_t rows, std::int64_t depth, std::vector<std::int64_t> outputs, std::int64_t ranks, int adapters = 3)
      : depth_(depth), outputs_(std::move(outputs)), ranks_(ranks) {
    std::vector<LoraEntry> entries;
    for (int a = 0; a < adapters; ++a)
      for (std::size_t p = 0; p < outputs_.size(); ++p) {
        Part part;
        part.rank = 8 * ((a + static_cast<std::int64_t>(p)) % (ranks / 8 + 1));
        part.scale = 0.5f + static_cast<float>(a);
        part.a = random_bf16(part.rank * depth_, 40 + static_cast<std::uint64_t>(a), 0.2f);
        part.b = random_bf16(outputs_[p] * part.rank, 50 + static_cast<std::uint64_t>(p), 0.2f);
        part.device_a = DeviceRows(part.a, part.rank, depth_);
        part.device_b = DeviceRows(part.b, outputs_[p], part.rank);
        entries.push_back({part.device_a.view().data, part.device_b.view().data, static_cast<std::int32_t>(part.rank), part.scale});
        parts_.push_back(std::move(part));
      }
    std::vector<std::int32_t> of;
    for (std::int64_t r = 0; r < rows; ++r) of.push_back(static_cast<std::int32_t>(r % (adapters + 1)) - 1);
    if (rows == 1) of[0] = 1;
    of_ = of;
    entries_ = DeviceBuffer<LoraEntry>(entries);
    device_of_ = DeviceBuffer<std::int32_t>(of);
  }

  RowAdapters view() const { return {entries_.data(), device_of_.data(), static_cast<std::int64_t>(outputs_.size()), ranks_}; }
  LoraColumns columns() const {
    LoraColumns c{};
    for (std::size_t p = 0; p < outputs_.size(); ++p) c.first_output[p + 1] = c.first_output[p] + outputs_[p];
    return c;
  }

  // y [rows, Σ outputs] += bf16(scale · x·Aᵀ)·Bᵀ
  void add(const std::vector<float>& x, std::vector<float>& y) const {
    std::int64_t width = 0;
    for (const std::int64_t n : outputs_) width += n;
    for (std::size_t r = 0; r < of_.size(); ++r) {
      if (of_[r] < 0) continue;
      float* to = y.data() + static_cast<std::int64_t>(r) * width;
      for (std::size_t p = 0; p < outputs_.size(); to += outputs_[p], ++p) {
        const Part& part = parts_[static_cast<std::size_t>(of_[r]) * outputs_.size() + p];
        for (std::int64_t j = 0; j < part.rank; ++j) {
          float low = 0;
          for (std::int64_t k = 0; k < depth_; ++k) low += x[r * static_cast<std::size_t>(depth_) + static_cast<std::size_t>(k)] * part.a[static_cast<std::size_t>(j * depth_ + k)];
          low = round_to_bf16(part.scale * low);
          for (std::int64_t n = 0; n < outputs_[p]; ++n) to[n] += low * part.b[static_cast<std::size_t>(n * part.rank + j)];
        }
      }
    }
  }

 private:
  struct Part {
    std::int64_t rank = 0;
    float scale = 0;
    std::vector<float> a, b;
    DeviceRows device_a{0, 8}, device_b{0, 8};
  };
  std::int64_t depth_;
  std::vector<std::int64_t> outputs_;
  std::int64_t ranks_;
  std::vector<Part> parts_;
  std::vector<std::int32_t> of_;
  DeviceBuffer<LoraEntry> entries_;
  DeviceBuffer<std::int32_t> device_of_;
};

}  // namespace engine::cuda::test
