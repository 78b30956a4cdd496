// op_test.h: what the tests of device operations share. They run on a device and in the emulation alike.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/ops/view.h"
#include "cuda/runtime/device_buffer.h"
#include "cuda/runtime/stream.h"
#include "ops/op_test.h"

namespace engine::cuda::test {

using engine::test::exec;
using engine::test::random_values;
using engine::test::relative_error;

// What one rounding to bf16 of every value can do to the norm of a result.
inline constexpr double kRounding = 0x1p-8;

inline Stream& stream() {
  static Stream shared;
  return shared;
}

// A bf16 matrix on the device, with the same values as floats here. Its rows are `gap` columns further apart than they are wide, rounded up to the
// multiple of 8 that operations ask for; the columns between are NaN and must stay so.
class DeviceRows {
 public:
  DeviceRows(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) : rows_(rows), cols_(cols), stride_((cols + 7) / 8 * 8 + gap) {
    buffer_ = DeviceBuffer<bf16>(std::vector<bf16>(static_cast<std::size_t>(rows * stride_), bf16{0x7fc0}));
  }
  DeviceRows(const std::vector<float>& values, std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) : DeviceRows(rows, cols, gap) {
    std::vector<bf16> bits(static_cast<std::size_t>(rows * stride_), bf16{0x7fc0});
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) bits[static_cast<std::size_t>(r * stride_ + c)] = to_bf16(values[static_cast<std::size_t>(r * cols + c)]);
    buffer_ = DeviceBuffer<bf16>(bits);
  }

  View<bf16> view() const { return {buffer_.data(), rows_, cols_, stride_}; }

  std::vector<float> read() const {
    const std::vector<bf16> bits = buffer_.read(stream());
    std::vector<float> values;
    values.reserve(static_cast<std::size_t>(rows_ * cols_));
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < stride_; ++c) {
        const bf16 value = bits[static_cast<std::size_t>(r * stride_ + c)];
        if (c < cols_)
          values.push_back(to_float(value));
        else
          CHECK_EQ(value.bits, 0x7fc0);
      }
    return values;
  }

 private:
  std::int64_t rows_, cols_, stride_;
  DeviceBuffer<bf16> buffer_;
};

// Values that bf16 holds exactly, for operands that both sides must see alike.
inline std::vector<float> random_bf16(std::int64_t n, std::uint64_t number, float width = 1.0f) {
  std::vector<float> values = random_values(n, number, width);
  for (float& value : values) value = round_to_bf16(value);
  return values;
}

inline DeviceBuffer<float> poisoned_floats(std::int64_t n) {
  return DeviceBuffer<float>(std::vector<float>(static_cast<std::size_t>(n), std::numeric_limits<float>::quiet_NaN()));
}

inline ConstRows rows(const std::vector<float>& values, std::int64_t r, std::int64_t c) { return {values.data(), r, c}; }
inline Rows rows(std::vector<float>& values, std::int64_t r, std::int64_t c) { return {values.data(), r, c}; }

inline Exec cpu() { return exec(Isa::scalar, Compute::f32); }
inline Exec cpu_bf16() { return exec(Isa::scalar, Compute::bf16); }

// A weight whose memory is on the device.
struct DeviceWeight {
  DeviceBuffer<std::uint8_t> data, codes;
  DeviceBuffer<float> absmax, nested_map, nested_absmax;
  Matrix view;

  explicit DeviceWeight(const engine::test::OwnedWeight& host) : data(host.bytes), codes(host.codes), absmax(host.absmax), nested_absmax(host.nested_absmax) {
    view = host.view;
    view.data = data.data();
    if (host.view.nf4.absmax != nullptr) {
      view.nf4.absmax = absmax.data();
    } else if (host.view.dtype == Dtype::nf4) {
      nested_map = DeviceBuffer<float>(std::vector<float>(kDynamicSigned.begin(), kDynamicSigned.end()));
      view.nf4 = {nullptr, codes.data(), nested_map.data(), nested_absmax.data(), host.view.nf4.offset};
    }
  }
};

}  // namespace engine::cuda::test
