#include "cuda/infer/device_adapter.h"

#include <algorithm>

#include "cuda/runtime/device_buffer.h"
#include "cuda/ops/op_test.h"
#include "infer/generation_case.h"

namespace engine::cuda {
namespace {

using namespace engine::test;
using engine::cuda::test::stream;

std::shared_ptr<const LoraAdapter> with_modules(const ModelSpec& spec, std::vector<std::string> modules) {
  LoraConfig config{4, 8, 0, false, {"q_proj"}, ""};
  config.modules_to_save = std::move(modules);
  auto adapter = std::make_shared<LoraAdapter>(spec, config);
  for (std::int64_t i = 0; i < adapter->size(); ++i) adapter->data()[i] = static_cast<float>(i % 251);
  return adapter;
}

TEST("an adapter's own token table and head are counted, uploaded as bf16, and make room for each other by bytes") {
  const ModelSpec spec = Model(family("llama3").dir, {.threads = 1}).spec();
  const Geometry geometry = make_geometry(spec);
  const auto bytes = [&](const LoraAdapter& adapter) { return DeviceAdapter::bytes(adapter, geometry, spec.layers); };
  const auto plain = with_modules(spec, {}), head = with_modules(spec, {"lm_head"}), both = with_modules(spec, {"embed_tokens", "lm_head"});
  const std::int64_t module = aligned_bytes(2 * spec.vocab * spec.hidden);
  CHECK_EQ(bytes(*head), bytes(*plain) + module);
  CHECK_EQ(bytes(*both), bytes(*plain) + 2 * module);

  AdapterCache cache(geometry, spec.layers, bytes(*both) + bytes(*plain));
  cache.begin_step();
  const DeviceAdapter& uploaded = *cache.use(both, stream()).adapter;
  std::vector<bf16> values(static_cast<std::size_t>(spec.vocab * spec.hidden));
  for (const auto& [at, offset] : {std::pair{uploaded.embedding(), both->embedding_offset()}, {uploaded.head(), both->head_offset()}}) {
    copy_to_host(values.data(), at, 2 * spec.vocab * spec.hidden, stream());
    stream().synchronize();
    CHECK(std::equal(values.begin(), values.end(), both->data() + offset, [](bf16 a, float b) { return to_float(a) == b; }));
  }
  CHECK(cache.use(plain, stream()).adapter->head() == nullptr);
  CHECK_EQ(cache.used(), bytes(*both) + bytes(*plain));
  CHECK_THROWS(oom, cache.use(head, stream()));  // those of this step stay
  cache.begin_step();
  cache.use(plain, stream());
  cache.use(head, stream());                     // `both` was used before `plain`
  CHECK_EQ(cache.used(), bytes(*plain) + bytes(*head));
}

}  // namespace
}  // namespace engine::cuda
