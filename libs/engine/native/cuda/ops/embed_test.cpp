#include "cuda/ops/embed.h"

#include <cstring>

#include "cuda/ops/op_test.h"
#include "ops/embed.h"

namespace engine::cuda {
namespace {

using namespace test;

TEST("token rows come scaled from device memory and from pinned host memory alike") {
  const std::int64_t v = 67, h = 136;
  const auto values = random_bf16(v * h, 1);
  const DeviceRows table(values, v, h);
  PinnedMemory pinned(v * h * 2);
  for (std::int64_t i = 0; i < v * h; ++i) pinned.as<bf16>()[i] = to_bf16(values[static_cast<std::size_t>(i)]);
  for (const std::int64_t t : {0, 1, 65}) {
    std::vector<std::uint32_t> ids;
    for (std::int64_t i = 0; i < t; ++i) ids.push_back(static_cast<std::uint32_t>(i * 29 % v));
    const DeviceBuffer<std::uint32_t> device_ids(ids);
    const DeviceRows out(t, h, 64), from_host(t, h);
    embed_forward(table.view(), device_ids.data(), 8.5f, out.view(), stream());
    embed_forward(View<const bf16>(pinned.as<bf16>(), v, h), device_ids.data(), 8.5f, from_host.view(), stream());
    std::vector<float> expected;
    for (const std::uint32_t id : ids)
      for (std::int64_t c = 0; c < h; ++c) expected.push_back(round_to_bf16(8.5f * values[static_cast<std::size_t>(id * h + c)]));
    CHECK(out.read() == expected);
    CHECK(from_host.read() == expected);
  }
}

TEST("token rows come from the table of each row's adapter where it has one") {
  const std::int64_t v = 19, h = 264;
  const auto base = random_bf16(v * h, 1), own = random_bf16(v * h, 2);
  const DeviceRows table(base, v, h), other(own, v, h), out(5, h, 8);
  const DeviceBuffer<const bf16*> tables(std::vector<const bf16*>{nullptr, other.view().data});
  const std::vector<std::int32_t> adapter{1, -1, 0, 1, -1};
  const std::vector<std::uint32_t> ids{3, 3, 18, 0, 7};
  const DeviceBuffer<std::int32_t> device_adapter(adapter);
  const DeviceBuffer<std::uint32_t> device_ids(ids);
  embed_rows_forward(table.view(), {tables.data(), device_adapter.data()}, device_ids.data(), 1.5f, out.view(), stream());
  std::vector<float> expected;
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::int64_t c = 0; c < h; ++c) expected.push_back(round_to_bf16(1.5f * (adapter[t] == 1 ? own : base)[static_cast<std::size_t>(ids[t] * h + c)]));
  CHECK(out.read() == expected);
}

TEST("token rows of an fp32 table are rounded once, after they are scaled") {
  const std::int64_t v = 13, h = 264;
  const std::vector<float> values = random_values(v * h, 4);
  const DeviceBuffer<float> table(values);
  const std::vector<std::uint32_t> ids{12, 0, 5, 12};
  const DeviceBuffer<std::uint32_t> device_ids(ids);
  const DeviceRows out(4, h, 8);
  embed_forward(View<const float>(table.data(), v, h), device_ids.data(), 5.656f, out.view(), stream());
  std::vector<float> expected;
  for (const std::uint32_t id : ids)
    for (std::int64_t c = 0; c < h; ++c) expected.push_back(round_to_bf16(5.656f * values[static_cast<std::size_t>(id * h + c)]));
  CHECK(out.read() == expected);
}

TEST("gradients of repeated tokens are added in order, bit for bit as on the CPU") {
  const std::int64_t v = 11, h = 72, t = 333;
  std::vector<std::uint32_t> ids;
  for (std::int64_t i = 0; i < t; ++i) ids.push_back(static_cast<std::uint32_t>(i * i % v));
  const auto dout = random_bf16(t * h, 2);
  std::vector<float> expected = random_values(v * h, 3);
  const DeviceBuffer<float> table(expected);
  engine::embed_backward(cpu(), ids, rows(dout, t, h), 1.5f, rows(expected, v, h));
  const DeviceBuffer<std::uint32_t> device_ids(ids);
  const DeviceRows device_dout(dout, t, h);
  embed_backward(device_ids.data(), device_dout.view(), 1.5f, View<float>(table.data(), v, h), stream());
  CHECK(table.read(stream()) == expected);
}

}  // namespace
}  // namespace engine::cuda
