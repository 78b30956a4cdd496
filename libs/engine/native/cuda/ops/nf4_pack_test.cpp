#include "cuda/ops/nf4_pack.h"

#include "core/code_tables.h"
#include "cuda/ops/op_test.h"
#include "ops/nf4.h"

namespace engine::cuda {
namespace {

using namespace test;
using engine::test::make_weight;
using engine::test::OwnedWeight;
using engine::test::WeightKind;

float scale_of(const OwnedWeight& weight, std::int64_t block) { return engine::nf4_scale(weight.view.nf4, block); }

// Some matrices of the same K, packed.
struct Packed {
  std::vector<OwnedWeight> host;
  std::vector<DeviceWeight> device;
  DeviceMemory memory;
  PackedNf4 weight;

  Packed(WeightKind kind, const std::vector<std::int64_t>& part_rows, std::int64_t cols, bool gated) {
    Nf4Parts parts;
    for (const std::int64_t n : part_rows) {
      host.push_back(make_weight(kind, n, cols, 3 + host.size()));
      device.emplace_back(host.back());
    }
    for (std::size_t i = 0; i < device.size(); ++i) parts[i] = device[i].view;
    DeviceArena counter;
    take_packed(counter, part_rows, cols, gated);
    memory = DeviceMemory(counter.used());
    fill_bytes(memory.data(), 0xff, memory.bytes(), stream());
    DeviceArena arena(memory.data(), memory.bytes());
    weight = take_packed(arena, part_rows, cols, gated);
    nf4_pack(parts, weight, stream());
  }
};

struct Case {
  std::vector<std::int64_t> rows;
  std::int64_t cols;
  bool gated;
};
const Case kCases[] = {{{1}, 64, false},         {{16}, 256, false},        {{63}, 192, false},      {{100, 17, 16}, 1088, false},
                       {{24, 3, 40}, 320, false}, {{8, 8}, 64, true},        {{136, 136}, 320, true}};

TEST("a packed weight's values are those of its matrices, with scales rounded to fp16") {
  for (const WeightKind kind : {WeightKind::nf4, WeightKind::nf4_double})
    for (const Case& c : kCases) {
      const Packed packed(kind, c.rows, c.cols, c.gated);
      const DeviceRows out(packed.weight.outputs(), c.cols, 8);
      nf4_dequantize(packed.weight, out.view(), stream());
      std::vector<float> expected;
      for (std::size_t part = 0; part < c.rows.size(); ++part) {
        const float unit = packed.weight.unit[part];
        float largest = 0;
        for (std::int64_t i = 0; i < c.rows[part] * c.cols; ++i) {
          const float scale = scale_of(packed.host[part], i / kNf4Block) / unit;
          const std::uint8_t byte = packed.host[part].bytes[static_cast<std::size_t>(i / 2)];
          expected.push_back(round_to_bf16(kNf4[i % 2 == 0 ? byte >> 4 : byte & 15] * (to_float(to_f16(scale)) * unit)));
          largest = std::max(largest, std::abs(scale));
        }
        CHECK(largest >= 0x1p14f && largest < 0x1p15f);
      }
      CHECK(out.read() == expected);
    }
}

TEST("a packed weight lies as its header says") {
  for (const Case& c : kCases) {
    const Packed packed(WeightKind::nf4_double, c.rows, c.cols, c.gated);
    const std::int64_t blocks = c.cols / kNf4Block, quads = (blocks + 3) / 4, tiles = packed.weight.tiles;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(tiles * blocks * 512));
    std::vector<std::uint16_t> scales(static_cast<std::size_t>(tiles * quads * 64));
    copy_to_host(codes.data(), packed.weight.codes, static_cast<std::int64_t>(codes.size()), stream());
    copy_to_host(scales.data(), packed.weight.scales, static_cast<std::int64_t>(2 * scales.size()), stream());
    stream().synchronize();
    for (std::int64_t tile = 0; tile < tiles; ++tile)
      for (std::int64_t r = 0; r < 16; ++r) {
        std::int64_t row = c.gated ? 8 * tile + r % 8 : 16 * tile + r;
        std::size_t part = c.gated ? static_cast<std::size_t>(r / 8) : 0;
        while (!c.gated && part < c.rows.size() && row >= c.rows[part]) row -= c.rows[part++];
        const bool there = part < c.rows.size() && row < c.rows[part];
        for (std::int64_t block = 0; block < 4 * quads; ++block) {
          const std::uint16_t scale = scales[static_cast<std::size_t>(((tile * quads + block / 4) * 8 + r % 8) * 8 + 2 * (block % 4) + r / 8)];
          if (!there || block >= blocks) {
            CHECK_EQ(scale, 0);
            continue;
          }
          const OwnedWeight& weight = packed.host[part];
          CHECK_EQ(scale, to_f16(scale_of(weight, row * blocks + block) / packed.weight.unit[part]).bits);
          for (std::int64_t byte = 0; byte < 32; ++byte) {
            const auto at = static_cast<std::size_t>(((tile * blocks + block) * 32 + 4 * (r % 8) + byte / 8) * 16 + 8 * (r / 8) + byte % 8);
            CHECK_EQ(codes[at], weight.bytes[static_cast<std::size_t>(row * c.cols / 2 + 32 * block + byte)]);
          }
        }
      }
  }
}

TEST("matrices that cannot be packed, or are not those there is room for, are refused") {
  DeviceArena counter;
  const std::int64_t one[] = {16}, unlike[] = {8, 16}, odd[] = {12, 12};
  CHECK(nf4_packs(64) && !nf4_packs(72) && !nf4_packs(0));
  CHECK_THROWS(invalid, (take_packed(counter, one, 72, false), 0));
  CHECK_THROWS(invalid, (take_packed(counter, one, 64, true), 0));
  CHECK_THROWS(invalid, (take_packed(counter, unlike, 64, true), 0));
  CHECK_THROWS(invalid, (take_packed(counter, odd, 64, true), 0));
  PackedNf4 room = take_packed(counter, one, 64, false);
  const DeviceWeight other(make_weight(WeightKind::nf4, 15, 64, 3));
  CHECK_THROWS(invalid, (nf4_pack({other.view}, room, stream()), 0));
}

}  // namespace
}  // namespace engine::cuda
