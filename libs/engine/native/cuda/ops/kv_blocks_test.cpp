#include "cuda/ops/kv_blocks.h"

#include "cuda/ops/op_test.h"

using namespace engine;
using namespace engine::cuda;
using namespace engine::cuda::test;

TEST("blocks of keys and values are cleared and copied in every layer, and no other block changes") {
  constexpr std::int64_t layers = 3, blocks = 600, words = 12;  // 48 bytes a block; more than one launch lists
  std::vector<std::int32_t> values(layers * blocks * words);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i + 1);
  const DeviceBuffer<std::int32_t> pool(values);
  const KvBlocks all{pool.data(), layers, blocks * words * 4, words * 4};
  std::vector<std::int32_t> even;
  for (std::int32_t block = 0; block < blocks; block += 2) even.push_back(block);
  kv_copy(all, 2, 5, stream());
  kv_copy(all, 7, 2, stream());
  kv_zero(all, even, stream());
  kv_zero(all, {}, stream());
  const std::vector<std::int32_t> found = pool.read(stream());
  for (std::int64_t layer = 0; layer < layers; ++layer)
    for (std::int64_t block = 0; block < blocks; ++block)
      for (std::int64_t word = 0; word < words; ++word) {
        const std::int64_t from = block == 7 ? 5 : block;
        const std::int32_t expected = block % 2 == 0 ? 0 : values[static_cast<std::size_t>((layer * blocks + from) * words + word)];
        if (found[static_cast<std::size_t>((layer * blocks + block) * words + word)] != expected) {
          engine::test::report_failure(__FILE__, __LINE__, text("layer ", layer, ", block ", block, ", word ", word));
          return;
        }
      }
}
